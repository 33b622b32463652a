"""Which items are alike, by the users who have both."""

from collections.abc import Iterator

import numpy as np
import scipy.sparse

from adaptssr_jax.data.ragged import Ragged

# Pairs of items that are counted at once, of one user each.
_PAIRS = 2**24
_BEYOND = np.iinfo(np.int32).max


def similar_items(
  histories: Ragged, *, num_items: int, k: int, pairs: int = _PAIRS
) -> np.ndarray:
  """The most similar items of each item: ItemCF with inverse user frequency.

  sim(i, j) = sum over u with both of 1 / log(1 + |S_u|) / sqrt(N_i N_j)

  with S_u the set of items of user u, and N_i the number of users with item i.
  Only the order of the similarities of an item is used. Dividing by N_i, or
  rescaling all similarities (as by min-max), would not change it.

  Args:
    histories: behaviours of the training users, item numbers from 1.
    num_items: number of items.
    k: maximal number of similar items that are kept per item.
    pairs: number of item pairs counted at a time, which bounds the memory
      besides 40 bytes per behaviour; all pairs of one item, if these are more.

  Returns:
    int32 [num_items + 2, k], with rows for padding, the items and the mask.
    A row has the most similar items first (ties in float32: the lower number
    first), then 0. Items that share no user with another item have only 0.

  Example:
    >>> histories = Ragged.from_rows([[1, 2], [1, 2, 3], [3, 1]])
    >>> similar_items(histories, num_items=4, k=2).tolist()
    [[0, 0], [2, 3], [1, 3], [1, 2], [0, 0], [0, 0]]

  Reference:
    Breese et al., "Empirical Analysis of Predictive Algorithms for
    Collaborative Filtering", UAI 1998, has the inverse user frequency; Liu et
    al., CoSeRec, 2021, chooses items by it.
  """
  found = np.zeros((num_items + 2, k), np.int32)
  sets = _sets(histories, num_items + 1)
  sizes = np.diff(sets.indptr)
  holders = sets.T.tocsr()
  # Users without items, and items without users, are in no product.
  by_user = 1 / np.log1p(np.maximum(sizes, 1))
  by_item = 1 / np.sqrt(np.maximum(np.diff(holders.indptr), 1))
  weighted = scipy.sparse.diags(by_user) @ sets @ scipy.sparse.diags(by_item)
  weighted = weighted.tocsr()
  # How many pairs each item is in, of all users who have it.
  work = holders @ sizes.astype(np.int64)
  for rows in _blocks(work, pairs):
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
  # What a user has twice counts once.
  sets.sum_duplicates()
  sets.data[:] = 1
  return sets


def _blocks(work: np.ndarray, most: int) -> Iterator[range]:
  """Runs of rows whose work is at most this, or single rows."""
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
    block: rows `first`, `first + 1`, ... of a matrix of numbers above 0, whose
      diagonal is left out.
  """
  found = np.zeros((block.shape[0], k), np.int32)
  counts = np.diff(block.indptr)
  # Every row that is left has its diagonal at least.
  rows = np.flatnonzero(counts)
  if not len(rows):
    return found
  starts, counts = block.indptr[rows], counts[rows]
  column = block.indices
  # In float32, so that what is equal but for the order of a sum is equal.
  value = block.data.astype(np.float32)
  value[column == np.repeat(rows + first, counts)] = 0
  # Less than a sort takes, as long as few are wanted.
  for rank in range(k):
    best = np.maximum.reduceat(value, starts)
    is_best = value == np.repeat(best, counts)
    lowest = np.minimum.reduceat(np.where(is_best, column, _BEYOND), starts)
    found[rows, rank] = np.where(best > 0, lowest, 0)
    value[column == np.repeat(lowest, counts)] = 0
  return found
