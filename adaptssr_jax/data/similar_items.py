"""Similar items: those that many users have in common."""

from collections.abc import Iterator

import numpy as np
import scipy.sparse

from adaptssr_jax.data.ragged import Ragged

# Pairs of items of a user that are counted at a time, or all pairs of one item
# if these are more. It bounds the memory, apart from 40 bytes per behaviour.
_PAIRS = 2**24
_BEYOND = np.iinfo(np.int32).max


def similar_items(histories: Ragged, *, num_items: int, k: int) -> np.ndarray:
  """The most similar items of each item: ItemCF with inverse user frequency.

  sim(i, j) = sum over u with both of 1 / log(1 + |S_u|) / sqrt(N_i N_j)

  with S_u the set of items of user u, and N_i the number of users with item i.
  Only the order of the similarities of an item is used. Dividing by N_i, or
  rescaling all similarities (as by min-max), would not change it.

  Args:
    histories: behaviours of the training users, item numbers from 1.
    num_items: number of items.
    k: maximal number of similar items kept per item.

  Returns:
    int32 [num_items + 2, k], with rows for padding, the items and the mask.
    A row lists the most similar items first (of ties in float32, the lower
    number first) and is padded with 0. The row of an item that shares no user
    with another item is 0.

  Example:
    >>> histories = Ragged.from_rows([[1, 2], [1, 2, 3], [3, 1]])
    >>> similar_items(histories, num_items=4, k=2).tolist()
    [[0, 0], [2, 3], [1, 3], [1, 2], [0, 0], [0, 0]]

  Reference:
    Breese et al., "Empirical Analysis of Predictive Algorithms for
    Collaborative Filtering", UAI 1998, defines the inverse user frequency; Liu
    et al., CoSeRec, 2021, selects items by it.
  """
  found = np.zeros((num_items + 2, k), np.int32)
  sets = _sets(histories, num_items + 1)
  sizes = np.diff(sets.indptr)
  holders = sets.T.tocsr()
  # Users without items, and items without users, do not affect the product.
  by_user = 1 / np.log1p(np.maximum(sizes, 1))
  by_item = 1 / np.sqrt(np.maximum(np.diff(holders.indptr), 1))
  weighted = scipy.sparse.diags(by_user) @ sets @ scipy.sparse.diags(by_item)
  weighted = weighted.tocsr()
  # The number of pairs that each item is in, over all its users.
  work = holders @ sizes.astype(np.int64)
  for rows in _blocks(work, _PAIRS):
    block = holders[rows.start : rows.stop] @ weighted
    found[rows.start : rows.stop] = _first_of_rows(block, rows.start, k)
  return found


def _sets(histories: Ragged, num_ids: int) -> scipy.sparse.csr_array:
  """1 where a user has an item, float64 [users, num_ids]."""
  start, end = histories.offsets[[0, -1]]
  values = np.asarray(histories.values[start:end])
  offsets = histories.offsets - start
  ones = np.ones(len(values))
  sets = scipy.sparse.csr_array(
    (ones, values, offsets), shape=(len(histories), num_ids), copy=True
  )
  # An item that a user has twice is one element of the set.
  sets.sum_duplicates()
  sets.data[:] = 1
  return sets


def _blocks(work: np.ndarray, most: int) -> Iterator[range]:
  """Yields runs of rows whose work is at most `most`, or single rows."""
  ends = np.cumsum(work)
  start = 0
  while start < len(work):
    done = ends[start - 1] if start else 0
    stop = int(np.searchsorted(ends, done + most, side='right'))
    stop = max(stop, start + 1)
    yield range(start, stop)
    start = stop


def _first_of_rows(
  block: scipy.sparse.csr_array, first: int, k: int
) -> np.ndarray:
  """The columns of the k largest values of each row, int32 [rows, k], then 0.

  Args:
    block: rows `first`, `first + 1`, ... of a matrix of positive numbers, whose
      diagonal is ignored.
  """
  found = np.zeros((block.shape[0], k), np.int32)
  counts = np.diff(block.indptr)
  # Every row that is not empty has at least its diagonal.
  rows = np.flatnonzero(counts)
  if not len(rows):
    return found
  starts, counts = block.indptr[rows], counts[rows]
  column = block.indices
  # In float32, values that differ only by the order of a sum are equal.
  value = block.data.astype(np.float32)
  value[column == np.repeat(rows + first, counts)] = 0
  # Faster than a sort for small k.
  for rank in range(k):
    best = np.maximum.reduceat(value, starts)
    is_best = value == np.repeat(best, counts)
    lowest = np.minimum.reduceat(np.where(is_best, column, _BEYOND), starts)
    found[rows, rank] = np.where(best > 0, lowest, 0)
    value[column == np.repeat(lowest, counts)] = 0
  return found
