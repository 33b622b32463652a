"""Other random splits of the same rows."""

import numpy as np
import pytest
from test_data import ITEMS, LABELS, made_rows

from adaptssr_jax.data import UserData, Vocabulary, resplit
from adaptssr_jax.data.rows import split_positives
from tests.labelled_rows import arrays_of, rows_of


def stored(kind):
  names = ('train', 'validation', 'test')
  if kind == 'ranking':
    splits = split_positives(made_rows(kind))
  else:
    splits = {name: made_rows(kind, seed) for seed, name in enumerate(names)}
  return UserData(
    'made',
    {name: arrays_of(rows) for name, rows in splits.items()},
    Vocabulary(ITEMS, LABELS),
    kind,
  )


def test_resplit_deals_out_every_row_once_and_whole():
  users = stored('classification')
  pool = list(users.splits.values())
  numbers = {}
  for seed in (1, 2, 1):
    splits = resplit(users, seed).splits
    sizes = {name: len(split.items) for name, split in splits.items()}
    assert sizes == {'train': 36, 'validation': 12, 'test': 12}
    found = np.concatenate([split.number for split in splits.values()])
    assert sorted(found) == list(range(60))
    assert numbers.setdefault(seed, found.tolist()) == found.tolist()
    for split in splits.values():
      for row, number in enumerate(split.number):
        source, of_source = pool[number // 20], number % 20
        assert split.items[row].tolist() == source.items[of_source].tolist()
        at = np.array([row])
        assert split.user_ids(at) == source.user_ids(np.array([of_source]))
        assert split.label[row] == source.label[of_source]
  assert numbers[1] != numbers[2]


@pytest.mark.parametrize('seed', [0, 1, 5])
def test_positives_are_split_as_rows_and_listed_by_user(seed):
  users = stored('ranking')
  rows = [row for split in users.splits.values() for row in rows_of(split)]
  order = np.arange(len(rows))
  if seed:
    order = np.random.default_rng(seed).permutation(len(rows))
  for split in resplit(users, seed).splits.values():
    part, order = np.split(order, [split.num_rows])
    assert split.number.tolist() == part.tolist()
    assert rows_of(split) == [rows[at] for at in part]
    # This holds although the rows come from several stored splits.
    names = split.user_ids(np.arange(len(split.items)))
    assert len(set(names)) == len(names) < split.num_rows
    assert names == list(dict.fromkeys(rows[at][0] for at in part))
  assert len(order) == 0


@pytest.mark.parametrize('seed', [0, 2])
def test_the_first_rows_are_of_the_first_users(seed):
  train = resplit(stored('ranking'), seed).splits['train']
  rows = rows_of(train)
  for count in (1, 7, len(rows), len(rows) + 5):
    first = train.first(count)
    assert rows_of(first) == rows[:count]
    assert first.num_rows == len(first.number) == len(rows[:count])
    found = first.user_of_rows()
    assert first.user_ids(found) == [user for user, *_ in rows[:count]]
  assert rows_of(train.first(0)) == rows


def test_resplit_by_zero_numbers_the_stored_rows():
  users = stored('classification')
  found = resplit(users, 0)
  for name, begin in (('train', 0), ('validation', 20), ('test', 40)):
    split = found.splits[name]
    assert split.items is users.splits[name].items
    assert split.number.tolist() == list(range(begin, begin + 20))
    assert split.first(3).number.tolist() == list(range(begin, begin + 3))
