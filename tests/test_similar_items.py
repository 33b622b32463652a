"""Similar items against arithmetic, and against a loop over the formula."""

import math
import time

import numpy as np
import pytest

from adaptssr_jax.data import Ragged
from adaptssr_jax.data import similar_items as module
from adaptssr_jax.data.similar_items import similar_items


def by_loop(rows, num_items, k):
  """sum over users with both of 1/log(1 + |S_u|) / sqrt(N_i N_j), sorted."""
  sets = [set(map(int, row)) for row in rows]
  holders = [sum(i in s for s in sets) for i in range(num_items + 1)]
  found = np.zeros((num_items + 2, k), int)
  for i in range(1, num_items + 1):
    scores = []
    for j in range(1, num_items + 1):
      both = [s for s in sets if i in s and j in s]
      if i != j and both:
        total = sum(1 / math.log(1 + len(s)) for s in both)
        scores.append((-total / math.sqrt(holders[i] * holders[j]), j))
    best = sorted(scores)[:k]
    found[i, : len(best)] = [j for _, j in best]
  return found


def test_a_golden_value():
  # N = 3, 2, 2 of items 1, 2, 3. sim(1, 2) sqrt 6 = 1/log 3 + 1/log 4 = 1.63;
  # sim(1, 3) sqrt 6 = 1/log 4 + 1/log 5 = 1.34; sim(2, 3) = 1/log 4 / 2 = .36.
  # 4 is with 1, 3 and 5 in one set of four: of equals that of fewer users, 5,
  # is first: 1/log 5 / sqrt 1, then 3, then 1.
  rows = [[1, 2], [1, 2, 3], [3, 1, 4, 5]]
  found = similar_items(Ragged.from_rows(rows), num_items=6, k=3)
  assert found.dtype == np.int32
  assert found.tolist() == [
    [0, 0, 0],
    [2, 3, 4],
    [1, 3, 0],
    [1, 4, 5],
    [5, 3, 1],
    [4, 3, 1],
    [0, 0, 0],
    [0, 0, 0],
  ]


@pytest.mark.parametrize('pairs', [1, 50, 10**9])
def test_is_the_formula_in_blocks_of_any_size(monkeypatch, pairs):
  monkeypatch.setattr(module, '_PAIRS', pairs)
  rng = np.random.default_rng(0)
  rows = [rng.integers(1, 16, rng.integers(0, 9)) for _ in range(60)]
  # A repeated item counts once, and one user has no items.
  rows += [np.array([3, 3, 3, 4]), np.array([], int)]
  found = similar_items(Ragged.from_rows(rows), num_items=17, k=4)
  np.testing.assert_array_equal(found, by_loop(rows, 17, 4))


def test_equals_are_in_order_whatever_the_order_of_users():
  rng = np.random.default_rng(1)
  # Each of 20 items is with 7 in one set of each size: all are equal. What each
  # of six others is in beside those makes them less similar.
  rows = []
  for item in range(8, 28):
    rows += [[7, item], [7, item, 1], [7, item, 2, 3], [7, item, 4, 5, 6]]
  rows += [[item] for item in range(1, 7) for _ in range(900)]
  for _ in range(5):
    order = rng.permutation(len(rows))
    histories = Ragged.from_rows([rows[row] for row in order])
    found = similar_items(histories, num_items=27, k=20)
    assert found[7].tolist() == [*range(8, 28)]


def test_histories_that_are_a_part_of_others():
  rows = [[1, 2], [2, 3], [1, 3]]
  whole = Ragged.from_rows(rows)
  some = Ragged(whole.values, whole.offsets[:2])
  found = similar_items(some, num_items=3, k=1)
  assert found[:, 0].tolist() == [0, 2, 1, 0, 0]


def test_nobody_has_anything():
  none = similar_items(Ragged.from_rows([[], []]), num_items=2, k=2)
  assert none.shape == (4, 2)
  assert not none.any()


def test_takes_no_memory_of_all_pairs_of_items():
  rng = np.random.default_rng(2)
  items = 100_000
  rows = rng.integers(1, items + 1, (8_000, 20))
  begin = time.perf_counter()
  # All pairs together would take 80 GB.
  found = similar_items(Ragged.from_rows(list(rows)), num_items=items, k=2)
  assert found.any(axis=1).mean() > 0.7
  assert time.perf_counter() - begin < 60
