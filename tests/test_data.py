"""Ragged arrays, prepared data sets, their checks and their splits."""

import pathlib
import time

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from adaptssr_jax.data import (
  DataError,
  Ragged,
  Rows,
  UserBuilder,
  Vocabulary,
  builder,
  load,
)
from adaptssr_jax.data.builder import TaskConfig
from adaptssr_jax.data.prepared import columns
from adaptssr_jax.data.rows import (
  TASK_SHARES,
  check_rows,
  split_for,
  split_numbers,
  split_positives,
  split_rows,
)
from tests.labelled_rows import lists, rows_of

ROWS = [[5, 3, 8], [], [1], list(range(1, 9))]


# Ragged.


def test_rows_come_back_as_they_went_in():
  ragged = Ragged.from_rows(ROWS)
  assert lists(ragged) == ROWS
  assert len(ragged) == 4
  assert ragged.lengths.tolist() == [3, 0, 1, 8]
  assert ragged.values.dtype == np.int32


def test_no_rows_are_a_ragged_too():
  ragged = Ragged.from_rows([])
  assert len(ragged) == 0
  assert lists(ragged.take(np.array([], int))) == []
  assert ragged.padded(np.array([], int), 3).shape == (0, 3)


@pytest.mark.parametrize('rows', [[], [1], [3, 0, 3], [1, 1], [2, 3, 0, 1]])
def test_take_takes_any_rows_in_any_order(rows):
  taken = Ragged.from_rows(ROWS).take(np.array(rows, int))
  assert lists(taken) == [ROWS[row] for row in rows]
  assert taken.offsets[0] == 0


@pytest.mark.parametrize('length', [1, 3, 8, 11])
def test_padded_keeps_the_last_values_and_pads_at_the_end(length):
  rows = np.array([3, 1, 0, 2, 0])
  padded = Ragged.from_rows(ROWS).padded(rows, length)
  kept = [ROWS[row][-length:] for row in rows]
  assert padded.tolist() == [row + [0] * (length - len(row)) for row in kept]
  assert padded.dtype == np.int32


def test_padding_may_be_another_number():
  padded = Ragged.from_rows([[0, 5], []]).padded(np.arange(2), 3, fill=-1)
  assert padded.tolist() == [[0, 5, -1], [-1, -1, -1]]
  assert padded.dtype == np.int32
  assert Ragged.from_rows(ROWS).longest == 8
  assert Ragged.from_rows([]).longest == 0


def test_rows_of_several_are_concatenated():
  parts = [Ragged.from_rows(rows) for rows in (ROWS, [[], [7, 7]], [[9]])]
  assert lists(Ragged.concatenate(parts)) == [*ROWS, [], [7, 7], [9]]


def test_only_empty_rows_are_padded_to_zeros():
  padded = Ragged.from_rows([[], []]).padded(np.array([1, 0]), 2)
  assert padded.tolist() == [[0, 0], [0, 0]]


# Prepared data sets.

KINDS = ('pretrain', 'classification', 'conversion', 'ranking')
ITEMS = [f'ïtem {at}' for at in range(50)]
LABELS = ['x', 'y', 'z']


class MadeUsers(UserBuilder, skip_registration=True):
  """A data set of twenty users."""

  BUILDER_CONFIGS = tuple(TaskConfig(task=kind, kind=kind) for kind in KINDS)

  def _read(self, dl_manager):
    kind = self.builder_config.kind
    splits = {name: made_split(kind, seed) for seed, name in enumerate('ab')}
    return splits, Vocabulary(ITEMS, LABELS)


def made_rows(kind, seed=0):
  rng = np.random.default_rng(seed)
  items = [rng.integers(1, 51, rng.integers(1, 9)) for _ in range(20)]
  targets = [rng.permutation(3)[: rng.integers(1, 4)] for _ in range(20)]
  return Rows(
    user_id=[f'ü{user}' for user in range(20)],
    items=Ragged.from_rows(items),
    label={
      'classification': rng.integers(3, size=20),
      'conversion': rng.integers(2, size=20),
    }.get(kind),
    targets=Ragged.from_rows(targets) if kind == 'ranking' else None,
  )


def made_split(kind, seed):
  rows = made_rows(kind, seed)
  if kind != 'ranking':
    return rows
  order = np.random.default_rng(seed).permutation(len(rows.targets.values))
  return rows.with_positives(order[:30])


def check_equal(prepared, rows):
  assert prepared.user_ids(np.arange(len(rows.items))) == rows.user_id
  for name, column in rows._replace(user_id=None)._asdict().items():
    found = getattr(prepared, name)
    if isinstance(column, Ragged):
      assert lists(found) == lists(column)
    elif column is not None:
      assert found.tolist() == column.tolist()
    elif name != 'user_id':
      assert found is None


@pytest.mark.parametrize('kind', KINDS)
def test_a_prepared_data_set_is_what_was_written(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(columns, '_BLOCK', 7)  # the last block is not full
  data = load(MadeUsers(config=kind, data_dir=tmp_path))
  assert list(data.splits) == ['a', 'b']
  for seed, split in enumerate('ab'):
    check_equal(data.splits[split], made_split(kind, seed))
  assert list(data.vocabulary.items) == ITEMS
  assert list(data.vocabulary.labels) == LABELS
  assert data.kind == kind


@pytest.mark.parametrize('shard', [3, 1000])
def test_a_split_of_any_size_is_prepared_in_order(tmp_path, monkeypatch, shard):
  # TFDS would sort more than this on disk, and import TensorFlow for it.
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 100)
  monkeypatch.setattr(builder, '_SHARD', shard)
  data = load(MadeUsers(config='ranking', data_dir=tmp_path))
  for seed, split in enumerate('ab'):
    check_equal(data.splits[split], made_split('ranking', seed))
  found = list(tmp_path.rglob('*-a.array_record-*'))
  assert len(found) == -(-len(data.splits['a'].items) // shard)


def test_it_is_prepared_once_and_opened_memory_mapped(tmp_path, monkeypatch):
  load(MadeUsers(config='ranking', data_dir=tmp_path))
  monkeypatch.setattr(MadeUsers, '_read', None)
  monkeypatch.setattr(MadeUsers, 'as_data_source', None)
  start = time.monotonic()
  data = load(MadeUsers(config='ranking', data_dir=tmp_path))
  assert time.monotonic() - start < 2
  for column in (data.splits['a'].items, data.splits['a'].targets):
    assert isinstance(column.values, np.memmap)
    assert not column.values.flags.writeable


def test_half_written_arrays_are_not_taken_for_whole(tmp_path, monkeypatch):
  made = MadeUsers(config='pretrain', data_dir=tmp_path)
  calls = []

  def append_once(*args):
    if calls:
      raise OSError('disk full')
    calls.append(args)

  with monkeypatch.context() as patched:
    patched.setattr(columns, '_append', append_once)
    with pytest.raises(OSError, match='disk full'):
      load(made)
  folder = pathlib.Path(made.data_dir).parent
  assert [path.name for path in folder.iterdir()] == ['.lock']
  check_equal(load(made).splits['b'], made_rows('pretrain', 1))


# Checks.


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'items': Ragged.from_rows([])}, r'the test split has no users'),
    (
      {'items': Ragged.from_rows([[1], [], [2]])},
      r"user 'Bo' of the test split has no behaviours",
    ),
    (
      {'items': Ragged.from_rows([[1], [2], [1, 4]])},
      r"item 4 of user 'Cy' in the test split is outside 1\.\.3",
    ),
    (
      {'items': Ragged.from_rows([[0], [2], [1]])},
      r"item 0 of user 'Al' in the test split is outside 1\.\.3",
    ),
    (
      {'label': np.array([0, 2, 1])},
      r"label 2 of user 'Bo' in the test split is outside 0\.\.1",
    ),
    ({'label': np.array([0, 1, -1])}, r"label -1 of user 'Cy'"),
    (
      {'targets': Ragged.from_rows([[0, 1], [1], [0, 2]])},
      r"target 2 of user 'Cy' in the test split is outside 0\.\.1",
    ),
    ({'targets': Ragged.from_rows([[0, -1], [1], [0]])}, r"target -1 .*'Al'"),
  ],
)
def test_a_row_that_cannot_be_used_is_named(change, message):
  rows = Rows(['Al', 'Bo', 'Cy'], Ragged.from_rows([[1], [2, 3], [3]]))
  vocabulary = Vocabulary(['i', 'j', 'k'], ['p', 'q'])
  check_rows(rows, vocabulary, where='test split')
  with pytest.raises(DataError, match=message):
    check_rows(rows._replace(**change), vocabulary, where='test split')


def test_a_bad_row_is_reported_by_load(tmp_path, monkeypatch):
  rows = Rows(['Al'], Ragged.from_rows([[9]]))
  read = {'train': rows}, Vocabulary(['i'])
  monkeypatch.setattr(MadeUsers, '_read', lambda *_: read)
  with pytest.raises(DataError, match=r"item 9 of user 'Al' in the train"):
    load(MadeUsers(config='pretrain', data_dir=tmp_path))


# Splits.


@pytest.mark.parametrize('count', [5, 10, 999, 6040])
def test_splits_have_their_shares_and_lose_and_share_no_row(count):
  names = [str(row) for row in range(count)]
  rows = Rows(names, Ragged.from_rows([[row + 1] for row in range(count)]))
  splits = split_rows(rows, 'age')
  sizes = [len(part.items) for part in splits.values()]
  assert sizes[0] == count * 6 // 10
  assert sizes[0] + sizes[1] == count * 8 // 10
  users = [user for part in splits.values() for user in part.user_id]
  assert sorted(users) == sorted(names)
  for part in splits.values():  # a row stays together
    assert part.items.values.tolist() == [int(at) + 1 for at in part.user_id]


def test_users_held_out_of_pre_training_are_in_every_split_of_a_task():
  names = [str(row) for row in range(1000)]
  rows = Rows(names, Ragged.from_rows([[1]] * 1000))
  held_out = set(split_rows(rows, 'pretrain')['validation'].user_id)
  assert len(held_out) == 100
  for part in split_rows(rows, 'age').values():
    share = len(held_out.intersection(part.user_id)) / len(part.user_id)
    assert 0.04 < share < 0.16


def test_splits_depend_on_the_seed_alone():
  first, same, other = (
    split_numbers(30, TASK_SHARES, seed)['train'].tolist() for seed in (0, 0, 1)
  )
  assert first == same
  assert first != other


def rows_by_loops(rows):
  """One row per positive of each user: (user, items, positive, others)."""
  return [
    (user, items, own, {*targets} - {own})
    for user, items, targets in zip(
      rows.user_id, lists(rows.items), lists(rows.targets), strict=True
    )
    for own in targets
  ]


def test_positives_are_split_as_rows_and_stored_by_user():
  rows = made_rows('ranking')
  expected = rows_by_loops(rows)
  splits = split_positives(rows)
  assert list(splits) == ['train', 'validation', 'test']
  for name, part in split_for('click', len(expected)).items():
    users = splits[name]
    assert rows_of(users) == [expected[at] for at in part]
    # Each user is there once, in the order of first rows.
    assert len(set(users.user_id)) == len(users.user_id)
    assert sorted(part[0] for part in lists(users.places)) == [
      part[0] for part in lists(users.places)
    ]
    assert [rows.user_id[at] for at in users.user_number] == users.user_id


def test_users_are_split_with_all_of_their_positives():
  rows = made_rows('ranking')
  expected = split_rows(rows, 'age')
  for name, users in split_positives(rows, by_user=True).items():
    assert users.user_id == expected[name].user_id
    assert lists(users.positives) == lists(expected[name].targets)
    assert rows_of(users) == rows_by_loops(expected[name])


def test_users_without_positives_are_in_no_split():
  targets = Ragged.from_rows([[], [3, 5, 3], [], [1]])
  items = Ragged.from_rows([[1], [2], [3], [4]])
  rows = Rows(['a', 'b', 'c', 'd'], items, targets=targets)
  users = rows.with_positives(np.array([3, 2, 0]))
  assert users.user_id == ['d', 'b']
  # A repeated target is the positive of two rows.
  assert lists(users.positives) == [[1], [3, 3]]
  assert lists(users.places) == [[0], [1, 2]]
  assert users.user_number.tolist() == [3, 1]
  assert len(rows.with_positives(np.array([], int)).items) == 0
