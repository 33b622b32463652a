"""How often each item is among the behaviours of users."""

import numpy as np

from adaptssr_jax.data import UserArrays
from adaptssr_jax.encoder.model import UserEncoder

_COUNTED_AT_ONCE = 2**24


def item_counts(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The behaviours of each id, int64 [1 + items]; the first is padding.

  Example:
    >>> from adaptssr_jax.data import Ragged
    >>> users = UserArrays(None, Ragged.from_rows([[1, 1, 1], [3, 1]]))
    >>> item_counts(UserEncoder(3), users).tolist()
    [0, 4, 0, 1]
  """
  counts = np.zeros(encoder.mask_id, np.int64)
  values = users.items.values
  # Piece by piece: to count, NumPy makes a copy of what it counts.
  for start in range(0, len(values), _COUNTED_AT_ONCE):
    counts += np.bincount(
      values[start : start + _COUNTED_AT_ONCE], minlength=encoder.mask_id
    )
  return counts


def ends_of_items(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The behaviours of each id or one before it, int32 [1 + items].

  Of more behaviours than an int32 can count, the counts are scaled down, and an
  item that has any keeps one.
  """
  counts = item_counts(encoder, users)
  scale = max(int(counts.sum()) // 2**30, 1)
  return np.cumsum(-(-counts // scale)).astype(np.int32)
