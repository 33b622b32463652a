"""Rows of unequal length in two flat arrays, which can be memory-mapped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

# Rows taken at once: the positions of all would need more memory than the rows.
_BLOCK = 65_536


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows of unequal length: row i is `values[offsets[i]:offsets[i + 1]]`.

  Args:
    values: all rows, one after the other, [total].
    offsets: where each row begins and the last one ends, int64 [rows + 1].

  Example:
    >>> rows = Ragged.from_rows([[1, 2, 3], [4]])
    >>> rows.padded(np.array([0, 1]), 2)
    array([[2, 3],
           [4, 0]], dtype=int32)
  """

  values: np.ndarray
  offsets: np.ndarray

  @classmethod
  def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
    """Rows that follow each other in `values` with these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return cls(values, offsets)

  @classmethod
  def from_rows(
    cls,
    rows: Sequence[Iterable[int] | np.ndarray],
    dtype: type = np.int32,
  ) -> Ragged:
    """The rows of a sequence of sequences."""
    arrays = [np.asarray(row, dtype).reshape(-1) for row in rows]
    values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
    return cls.from_lengths(values, np.array([len(row) for row in arrays]))

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, row: int | np.integer) -> np.ndarray:
    return self.values[self.offsets[row] : self.offsets[row + 1]]

  @property
  def lengths(self) -> np.ndarray:
    """The length of each row, int64 [rows]."""
    return np.diff(self.offsets)

  def first(self, rows: int) -> Ragged:
    """The first rows, which share the memory of all."""
    return Ragged(self.values, self.offsets[: rows + 1])

  def take(self, rows: np.ndarray) -> Ragged:
    """These rows, in this order, as a new `Ragged`."""
    lengths = self.lengths[rows]
    values = np.empty(lengths.sum(), self.values.dtype)
    taken = Ragged.from_lengths(values, lengths)
    for start in range(0, len(rows), _BLOCK):
      block = slice(start, min(start + _BLOCK, len(rows)))
      begin, end = taken.offsets[start], taken.offsets[block.stop]
      # Each position moves by as much as its row does.
      shift = self.offsets[rows[block]] - taken.offsets[block]
      positions = np.arange(begin, end) + np.repeat(shift, lengths[block])
      values[begin:end] = self.values[positions]
    return taken

  def padded(self, rows: np.ndarray, length: int) -> np.ndarray:
    """The last `length` values of each row, zeros after: [rows, length]."""
    ends = self.offsets[rows + 1]
    kept = np.minimum(ends - self.offsets[rows], length)
    column = np.arange(length)
    inside = column < kept[:, None]
    positions = np.where(inside, (ends - kept)[:, None] + column, 0)
    if not len(self.values):
      return np.zeros(inside.shape, self.values.dtype)
    return np.where(inside, self.values[positions], 0)
