"""Other splits of the same rows."""

import numpy as np
import pytest
from test_data import ITEMS, LABELS, made_rows

from adaptssr_jax.data import Ragged, UserArrays, UserData, Vocabulary, resplit


def stored(kind='ranking'):
  splits = {
    name: made_rows(kind, seed)
    for seed, name in enumerate(('train', 'validation', 'test'))
  }
  return UserData(
    'made',
    {
      name: UserArrays(
        Ragged.from_rows(
          [list(user.encode()) for user in rows.user_id], np.uint8
        ),
        rows.items,
        rows.label,
        rows.targets,
      )
      for name, rows in splits.items()
    },
    Vocabulary(ITEMS, LABELS),
    kind,
  )


@pytest.mark.parametrize('kind', ['classification', 'ranking'])
def test_resplit_deals_out_every_row_once_and_whole(kind):
  users = stored(kind)
  pool = list(users.splits.values())
  numbers = {}
  for seed in (1, 2, 1):
    splits = resplit(users, seed).splits
    sizes = {name: len(split.items) for name, split in splits.items()}
    assert sizes == {'train': 36, 'validation': 12, 'test': 12}
    dealt = np.concatenate([split.number for split in splits.values()])
    assert sorted(dealt) == list(range(60))
    assert numbers.setdefault(seed, dealt.tolist()) == dealt.tolist()
    for split in splits.values():
      for row, number in enumerate(split.number):
        source, of_source = pool[number // 20], number % 20
        assert split.items[row].tolist() == source.items[of_source].tolist()
        at = np.array([row])
        assert split.user_ids(at) == source.user_ids(np.array([of_source]))
        if kind == 'ranking':
          expected = source.targets[of_source].tolist()
          assert split.targets[row].tolist() == expected
        else:
          assert split.label[row] == source.label[of_source]
  assert numbers[1] != numbers[2]


def test_resplit_by_zero_numbers_the_stored_rows():
  users = stored()
  found = resplit(users, 0)
  for name, begin in (('train', 0), ('validation', 20), ('test', 40)):
    split = found.splits[name]
    assert split.items is users.splits[name].items
    assert split.number.tolist() == list(range(begin, begin + 20))
    assert split.first(3).number.tolist() == list(range(begin, begin + 3))
