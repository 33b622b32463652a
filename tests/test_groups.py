"""Rows of one user and one history become one example, and rows again."""

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, RaggedView, UserArrays
from adaptssr_jax.data.prepared import groups
from adaptssr_jax.data.prepared.groups import group_rows, in_row_order


def split_of(rows):
  """A split of (user, items, targets), the positive first."""
  users, items, targets = zip(*rows, strict=True) if rows else ((), (), ())
  names = [list(user.encode()) for user in users]
  return UserArrays(
    Ragged.from_rows(names, np.uint8),
    Ragged.from_rows(items),
    targets=Ragged.from_rows(targets),
  )


def lists(ragged):
  return [ragged[row].tolist() for row in range(len(ragged))]


def examples_by_loops(rows):
  """What is grouped, by a dictionary: its rows and what it says."""
  found = {}
  for number, (user, items, targets) in enumerate(rows):
    key = user, tuple(items), tuple(sorted(targets))
    found.setdefault(key, []).append(number)
  return found


def assert_grouped(grouped, rows):
  examples = examples_by_loops(rows)
  numbers = list(examples.values())
  assert lists(grouped.rows) == numbers
  assert lists(grouped.positives) == [
    [rows[number][2][0] for number in own] for own in numbers
  ]
  assert lists(grouped.items) == [rows[own[0]][1] for own in numbers]
  assert lists(grouped.targets) == [rows[own[0]][2] for own in numbers]
  found = grouped.user_ids(np.arange(len(numbers)))
  assert found == [rows[own[0]][0] for own in numbers]


MIXED = [
  ('b', [1, 2], [7, 9]),
  ('a', [1, 2], [5, 6, 3]),
  ('b', [1, 2], [9, 7]),
  ('a', [2, 1], [3, 5, 6]),  # another order is another history
  ('a', [1, 2], [6, 5, 3]),
  ('a', [1, 2, 2], [6, 5, 3]),
  ('b', [1, 2], [8]),  # what is left out of its ranking differs
  ('a', [2, 1], [6, 3, 5]),
  ('c', [], [1]),
  ('ab', [1, 2], [1]),
  ('c', [], [1]),
  ('b', [1, 2], [9, 7]),  # the row before of this user has other targets
  ('a', [1, 2], [4, 6, 4]),
  ('a', [1, 2], [3, 6, 5]),
]


def test_rows_of_a_user_with_a_history_are_one_example():
  assert_grouped(group_rows(split_of(MIXED)), MIXED)


def made_rows(count, seed):
  """Few users of few histories, in the order of chance."""
  rng = np.random.default_rng(seed)
  histories = [rng.integers(1, 4, size).tolist() for size in (2, 2, 3, 0, 9)]
  rows = []
  for _ in range(count):
    user = str(rng.integers(20))
    targets = rng.permutation([int(user), 30, 31]).tolist()
    rows.append((user, histories[rng.integers(5)], targets))
  return rows


@pytest.mark.parametrize('block', [1, 7, 4096])
def test_many_rows_in_blocks_and_views(monkeypatch, block):
  monkeypatch.setattr(groups, '_BLOCK', block)
  rows = made_rows(300, seed=block)
  split = split_of(rows)
  grouped = group_rows(split)
  assert_grouped(grouped, rows)
  assert len(grouped.items) < 101
  # As `resplit` deals them out: no part of the file in order.
  order = np.random.default_rng(0).permutation(300)
  dealt = UserArrays(
    user_id=RaggedView((split.user_id,), order),
    items=RaggedView((split.items,), order),
    targets=RaggedView((split.targets,), order),
  )
  assert_grouped(group_rows(dealt), [rows[row] for row in order])


def test_fingerprints_that_hit_by_chance_join_no_rows(monkeypatch):
  for name in ('_fingerprints', '_set_fingerprints'):
    monkeypatch.setattr(
      groups,
      name,
      lambda column, rows, seed=0: np.zeros(len(rows), np.int64),
    )
  grouped = group_rows(split_of(MIXED))
  for own, items, targets in zip(
    lists(grouped.rows),
    lists(grouped.items),
    lists(grouped.targets),
    strict=True,
  ):
    for number in own:
      assert MIXED[number][0] == MIXED[own[0]][0]
      assert MIXED[number][1] == items
      assert sorted(MIXED[number][2]) == sorted(targets)
  assert sorted(grouped.rows.values.tolist()) == list(range(len(MIXED)))


def test_rows_of_different_users_stay_as_they_are():
  rows = [(f'user {at}', [1, 2], [at]) for at in range(9)]
  split = split_of(rows)
  grouped = group_rows(split)
  assert_grouped(grouped, rows)
  assert lists(grouped.rows) == [[at] for at in range(9)]
  # No history was copied.
  assert grouped.items.parts[0].values is split.items.values


def test_an_empty_split_has_no_examples():
  grouped = group_rows(split_of([]))
  assert len(grouped.items) == len(grouped.rows) == len(grouped.positives) == 0


def test_outputs_are_put_back_in_the_order_of_the_rows():
  rows = made_rows(200, seed=3)
  grouped = group_rows(split_of(rows))
  # An output that tells its row; what stands in padding slots must not show.
  most = grouped.rows.longest + 2
  outputs = grouped.rows.padded(np.arange(len(grouped.rows)), most, fill=-1)
  np.testing.assert_array_equal(
    in_row_order(outputs * 0.5, grouped.rows), np.arange(200) * 0.5
  )


def test_the_first_examples_keep_their_rows():
  grouped = group_rows(split_of(MIXED))
  first = grouped.first(2)
  assert lists(first.rows) == [[0, 2, 11], [1, 4, 13]]
  assert lists(first.positives) == [[7, 9, 9], [5, 6, 3]]
  assert len(first.items) == len(first.targets) == 2
