"""Counts the operations of a step, and generates users to time it on."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from adaptssr_jax.data import UserArrays, UserData, Vocabulary
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.encoder.model import UserEncoder
from experiments.benchmarking.options import BenchmarkSettings
from experiments.flags.objectives import TRAITS

# Number of vectors that an exact softmax scores for a user of n behaviours.
_SCORED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'masked_items': lambda n: np.ceil(0.3 * n),
  'causal_items': lambda n: n - 1,
  'pooled_items': lambda n: np.full(n.shape, 2),
  'next_items': np.ones_like,
  'msdp': np.ones_like,
}


def encoding_flops(
  lengths: Int[np.ndarray, '*shape'], encoder: UserEncoder
) -> Float[np.ndarray, '*shape']:
  """Counts the operations of the matrix products that encode sequences.

  f(n) = layers (24 n d^2 + 4 n^2 d) + 4 n d k

  for n items, d features and k pooling queries: in each layer 8 n d^2 for
  query, key, value and output, 16 n d^2 for the feed-forward layers, and
  4 n^2 d for the attention.

  Args:
    lengths: n of each sequence, without padding.

  Returns:
    f(n) of each sequence; a multiplication and an addition are 2 operations.

  Example:
    >>> encoder = UserEncoder(num_items=9, embed_dim=2, num_layers=1)
    >>> float(encoding_flops(np.array(3), encoder))
    384.0
  """
  n, d = np.asarray(lengths, float), encoder.embed_dim
  block = 24 * n * d**2 + 4 * n**2 * d
  return encoder.num_layers * block + 4 * n * d * encoder.num_queries


def step_flops(
  lengths: Int[np.ndarray, 'sequences'],
  *,
  users: int,
  encoder: UserEncoder,
  sequences: int = 4,
  scored: float = 0.0,
) -> float:
  """Counts the operations of the matrix products of a training step.

  3 S B mean(f(n)) + S^2 B^2 d k + 6 r B N d

  The gradient takes twice the operations of the encoding, f. Neither padding
  nor what is computed again for the gradient is included. The second term is
  that of the similarities, in AdaptSSR of 2 B anchors to 4 B vectors; only the
  largest similarities have gradients. For other objectives this term is too
  small to matter.

  Args:
    lengths: n of a sample of sequences, as the step encodes them.
    users: B, the users of a batch.
    sequences: S, the number of sequences that are encoded for each user.
    scored: r, the vectors of a user that are scored against all N items.

  Example:
    >>> encoder = UserEncoder(num_items=9, embed_dim=2, num_layers=1)
    >>> step_flops(np.array([3]), users=2, encoder=encoder)
    9344.0
  """
  forward = sequences * users * encoding_flops(lengths, encoder).mean()
  features = encoder.embed_dim * encoder.num_queries
  softmax = 6 * scored * users * encoder.num_items * encoder.embed_dim
  return float(3 * forward + (sequences * users) ** 2 * features + softmax)


def scored_per_user(
  objective: str, lengths: Int[np.ndarray, 'users']
) -> float | None:
  """Mean number of vectors that an exact softmax scores for a user.

  It is None for an objective for which the number is not known.

  Example:
    >>> scored_per_user('masked_items', np.array([5, 10]))
    2.5
  """
  if objective in _SCORED:
    return float(_SCORED[objective](lengths).mean())
  traits = TRAITS.get(objective)
  return 0.0 if traits and not traits.over_all_items else None


def synthetic_users(
  num_users: int, *, num_items: int, longest: int
) -> UserArrays:
  """Draws users whose lengths and items are distributed like those of TTL.

  Lengths are N(0.5484, 0.25) x longest, clipped to [0.1, 1] x longest; an item
  is z mod (num_items - 1) + 1, where z follows Zipf's law with exponent 1.2.

  Args:
    num_items: number of items, at least 2.
    longest: number of behaviours of the longest user.

  Returns:
    The users, without raw ids; the same ones at each call.

  Example:
    >>> users = synthetic_users(1000, num_items=50, longest=100)
    >>> bool(users.items.lengths.min() >= 10), users.items.longest
    (True, 100)
  """
  rng = np.random.default_rng(0)
  lengths = rng.normal(0.5484 * longest, 0.25 * longest, num_users).astype(int)
  lengths = np.clip(lengths, max(longest // 10, 1), longest)
  values = rng.zipf(1.2, lengths.sum()) % (num_items - 1) + 1
  items = Ragged.from_lengths(values.astype(np.int32), lengths)
  return UserArrays(None, items)


def synthetic_data(settings: BenchmarkSettings, num_users: int) -> UserData:
  """A data set of synthetic users, all of them in the training split."""
  num_items = settings.catalogues[0]
  users = synthetic_users(
    num_users, num_items=num_items, longest=settings.longest
  )
  return UserData('synthetic', {'train': users}, Vocabulary(range(num_items)))
