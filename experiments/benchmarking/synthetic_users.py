"""Users that are made in memory, to be timed on."""

import numpy as np

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.ragged import Ragged


def synthetic_users(
  num_users: int, *, num_items: int, longest: int, seed: int = 0
) -> UserArrays:
  """Users whose lengths and items are spread like those of the TTL data.

  Lengths are N(0.5484, 0.25) x longest, cut to [0.1, 1] x longest; an item is
  z mod (num_items - 1) + 1, with z of Zipf's law of exponent 1.2.

  Args:
    num_users: how many.
    num_items: items there are, at least 2.
    longest: behaviours of the longest user.
    seed: of the draws.

  Returns:
    The users, without raw ids.

  Example:
    >>> users = synthetic_users(1000, num_items=50, longest=100)
    >>> bool(users.items.lengths.min() >= 10), users.items.longest
    (True, 100)
  """
  rng = np.random.default_rng(seed)
  lengths = rng.normal(0.5484 * longest, 0.25 * longest, num_users).astype(int)
  lengths = np.clip(lengths, max(longest // 10, 1), longest)
  values = rng.zipf(1.2, lengths.sum()) % (num_items - 1) + 1
  items = Ragged.from_lengths(values.astype(np.int32), lengths)
  return UserArrays(None, items)
