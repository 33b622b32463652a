"""Rows of different lengths in two flat arrays, which can be memory-mapped."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

# Rows taken at a time; the positions of all need more memory than the rows.
_BLOCK = 65_536


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows of different lengths: row i is `values[offsets[i]:offsets[i + 1]]`.

  Args:
    values: the values of all rows, one row after the other, [total].
    offsets: the start of each row, and the end of the last, int64 [rows + 1].

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
    """Consecutive rows of `values`, with these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return cls(values, offsets)

  @classmethod
  def from_rows(
    cls,
    rows: Sequence[Iterable[int] | np.ndarray],
    dtype: type = np.int32,
  ) -> Ragged:
    """Rows from a sequence of sequences."""
    arrays = [np.asarray(row, dtype).reshape(-1) for row in rows]
    values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
    return cls.from_lengths(values, np.array([len(row) for row in arrays]))

  @classmethod
  def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
    """A copy of the rows of several `Ragged`, one after the other."""
    values = [part.values[part.offsets[0] : part.offsets[-1]] for part in parts]
    lengths = np.concatenate([part.lengths for part in parts])
    return cls.from_lengths(np.concatenate(values), lengths)

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, row: int | np.integer) -> np.ndarray:
    return self.values[self.offsets[row] : self.offsets[row + 1]]

  @property
  def lengths(self) -> np.ndarray:
    """The length of each row, int64 [rows]."""
    return np.diff(self.offsets)

  def lengths_of(self, rows: np.ndarray) -> np.ndarray:
    """The length of each of these rows, int64 [rows]."""
    return self.offsets[rows + 1] - self.offsets[rows]

  @functools.cached_property
  def longest(self) -> int:
    """The length of the longest row; 0 if there is none."""
    return int(self.lengths.max(initial=0))

  def take(self, rows: np.ndarray) -> Ragged:
    """A copy of the rows with these indices, in this order."""
    lengths = self.lengths[rows]
    values = np.empty(lengths.sum(), self.values.dtype)
    taken = Ragged.from_lengths(values, lengths)
    for start in range(0, len(rows), _BLOCK):
      block = slice(start, min(start + _BLOCK, len(rows)))
      begin, end = taken.offsets[start], taken.offsets[block.stop]
      # All positions of a row move by the same distance.
      shift = self.offsets[rows[block]] - taken.offsets[block]
      positions = np.arange(begin, end) + np.repeat(shift, lengths[block])
      values[begin:end] = self.values[positions]
    return taken

  def split(self, length: int) -> tuple[Ragged, np.ndarray]:
    """Splits each row into the fewest parts of at most `length` values.

    The parts of a row are consecutive, and their lengths differ by at most one.
    A row without values is one part.

    Returns:
      The parts of all rows, without a copy, and the number of parts of each
      row, int64 [rows].

    Example:
      >>> parts, counts = Ragged.from_rows([[1, 2, 3], [4]]).split(2)
      >>> [parts[part].tolist() for part in range(3)], counts.tolist()
      ([[1], [2, 3], [4]], [2, 1])
    """
    lengths = self.lengths
    counts = np.maximum(-(-lengths // length), 1)
    ends = np.cumsum(counts)
    within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
    shares = np.repeat(lengths, counts) * within // np.repeat(counts, counts)
    starts = np.repeat(self.offsets[:-1], counts) + shares
    return Ragged(self.values, np.append(starts, self.offsets[-1])), counts

  def padded(
    self,
    rows: np.ndarray,
    length: int,
    *,
    skip: np.ndarray | int = 0,
    fill: int = 0,
  ) -> np.ndarray:
    """The last `length` values of rows, padded with `fill`: [rows, length].

    Args:
      rows: indices of rows, int [rows].
      length: the number of values kept per row.
      skip: the number of values ignored at the end of each row.
      fill: the padding, which follows the values.
    """
    ends = self.offsets[rows + 1] - skip
    kept = np.minimum(ends - self.offsets[rows], length)
    column = np.arange(length)
    inside = column < kept[:, None]
    positions = np.where(inside, (ends - kept)[:, None] + column, 0)
    if not len(self.values):
      return np.full(inside.shape, fill, self.values.dtype)
    # A Python number does not change the type of the values.
    return np.where(inside, self.values[positions], fill)
