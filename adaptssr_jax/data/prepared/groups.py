"""Rankings by user: the rows of one user and one history as one example.

A history is then encoded once for all of its positives, not once for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptssr_jax.data.prepared.arrays import UserArrays
from adaptssr_jax.data.ragged import Ragged, RaggedView

# Rows that are read at once, of about the same length.
_BLOCK = 4096
# 2^63 by the golden ratio: multiples of it are far from each other.
_ODD = 0x4F1BBCDCBFA53E0B


def group_rows(arrays: UserArrays) -> UserArrays:
  """Makes one example of all rows of a user with the same history.

  Rows also have to agree in all of the user's positives, or one example could
  not say what to leave out of a ranking. Histories are not copied, and are read
  only where user ids are shared.

  Args:
    arrays: a split of a ranking task, a row for each positive.

  Returns:
    The examples, in the order of their first rows, with `positives` and `rows`:
    of each example, the positives and the numbers of its rows, in row order.

  Example:
    >>> users = UserArrays(
    ...   Ragged.from_rows([[65], [66], [65]], np.uint8),
    ...   Ragged.from_rows([[1, 2], [3], [1, 2]]),
    ...   targets=Ragged.from_rows([[7, 9], [8], [9, 7]]),
    ... )
    >>> grouped = group_rows(users)
    >>> [grouped.positives[at].tolist() for at in range(2)]
    [[7, 9], [8]]
    >>> [grouped.rows[at].tolist() for at in range(2)]
    [[0, 2], [1]]
  """
  order, again = _sorted_rows(arrays)
  first = order[~again]
  by_first = np.argsort(first)
  example = np.empty(len(order), np.int64)
  example[order] = np.argsort(by_first)[np.cumsum(~again) - 1]
  rows = Ragged.from_lengths(
    np.argsort(example, kind='stable'),
    np.bincount(example, minlength=len(first)),
  )
  first = first[by_first]
  return UserArrays(
    user_id=_view(arrays.user_id, first),
    items=_view(arrays.items, first),
    targets=_view(arrays.targets, first),
    positives=Ragged(positives_of(arrays, rows.values), rows.offsets),
    rows=rows,
  )


def in_row_order(outputs: np.ndarray, rows: Ragged) -> np.ndarray:
  """What was put out for the positives of examples, as one number a row.

  Args:
    outputs: in the order of the positives of each example, [examples, most].
    rows: of the examples, as `group_rows` gives them.

  Returns:
    The outputs in the order of the rows, [rows].

  Example:
    >>> rows = Ragged.from_rows([[0, 2], [1]])
    >>> in_row_order(np.array([[1.5, 3.5], [2.5, 0.0]]), rows)
    array([1.5, 2.5, 3.5])
  """
  exists = np.arange(outputs.shape[1]) < rows.lengths[:, None]
  ordered = np.empty(len(rows.values), outputs.dtype)
  ordered[rows.values] = outputs[exists]
  return ordered


def _sorted_rows(arrays: UserArrays) -> tuple[np.ndarray, np.ndarray]:
  """All rows, those of an example in a run; which say the same as the last."""
  rows = np.arange(len(arrays.items))
  key = _fingerprints(arrays.user_id, rows, seed=0)
  _, user, counts = np.unique(key, return_inverse=True, return_counts=True)
  shared = np.flatnonzero(counts[user] > 1)
  key[shared] += _fingerprints(arrays.items, shared, seed=1)
  # Else rows that differ in these alone could stand in turns.
  key[shared] += _set_fingerprints(arrays.targets, shared)
  order = np.argsort(key, kind='stable')
  again = np.diff(key[order], prepend=0) == 0
  again[:1] = False
  # A fingerprint only brings equal rows together, so that a chance hit costs
  # an example more, and is no error.
  for name in ('user_id', 'items', 'targets'):
    at = np.flatnonzero(again)
    again[at] = _agree(
      getattr(arrays, name),
      order[at],
      order[at - 1],
      in_any_order=name == 'targets',
    )
  return order, again


def _fingerprints(
  column: Ragged | RaggedView, rows: np.ndarray, *, seed: int
) -> np.ndarray:
  """A number for each row, the same for equal ones, int64 [rows].

  Those of columns that are added need seeds of their own.
  """
  found = np.zeros(len(rows), np.int64)
  weights = np.random.default_rng(seed).integers(2**62, size=column.longest)
  for at, length in _blocks(column, rows):
    # Overflow wraps around.
    found[at] = column.padded(rows[at], length) @ weights[:length]
  return found


def _set_fingerprints(
  column: Ragged | RaggedView, rows: np.ndarray
) -> np.ndarray:
  """A number for each row, the same for equal values in any order."""
  found = np.zeros(len(rows), np.int64)
  for at, length in _blocks(column, rows):
    values = column.padded(rows[at], length, fill=-1)
    # A plain sum would be the same for 1 + 4 and 2 + 3. Overflow wraps around.
    mixed = (values.astype(np.int64) + 1) * _ODD
    mixed = (mixed ^ (mixed >> 29)) * _ODD
    found[at] = mixed.sum(axis=1)
  return found


def _agree(
  column: Ragged | RaggedView,
  rows: np.ndarray,
  others: np.ndarray,
  *,
  in_any_order: bool,
) -> np.ndarray:
  """Which rows hold the same as the others beside them, bool [rows]."""
  agree = column.lengths_of(rows) == column.lengths_of(others)
  for at, length in _blocks(column, rows):
    values = column.padded(rows[at], length)
    expected = column.padded(others[at], length)
    if in_any_order:
      values, expected = np.sort(values), np.sort(expected)
    agree[at] &= (values == expected).all(axis=1)
  return agree


def _blocks(
  column: Ragged | RaggedView, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, int]]:
  """Where the rows of each block are among `rows`, and their longest length."""
  lengths = column.lengths_of(rows)
  # One long row would pad all of its block.
  by_length = np.argsort(lengths, kind='stable')
  for start in range(0, len(rows), _BLOCK):
    at = by_length[start : start + _BLOCK]
    yield at, int(lengths[at[-1]])


def _view(column: Ragged | RaggedView, rows: np.ndarray) -> RaggedView:
  """These rows, in this order, none of which is copied."""
  if isinstance(column, RaggedView):
    return column.take(rows)
  return RaggedView((column,), rows)


def positives_of(arrays: UserArrays, rows: np.ndarray) -> np.ndarray:
  """The first target of each row, int32 [rows]."""
  skip = arrays.targets.lengths_of(rows) - 1
  return arrays.targets.padded(rows, 1, skip=skip)[:, 0]
