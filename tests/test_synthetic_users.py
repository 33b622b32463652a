"""Synthetic users are reproducible, and partly predictable."""

import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from adaptssr_jax.data import load
from adaptssr_jax.data.synthetic_users import (
  SIZES,
  Size,
  make_next_items,
  make_users,
)
from tests.labelled_rows import lists, rows_of


def test_made_users_are_reproducible():
  first, labels = make_users(SIZES['tiny'])
  again, same = make_users(SIZES['tiny'])
  assert lists(first) == lists(again)
  for task in ('gender', 'age'):
    assert labels[task].tolist() == same[task].tolist()


@pytest.mark.parametrize('name', ['tiny', 'quickstart'])
def test_made_users_are_within_their_size(name):
  size = SIZES[name]
  items, labels = make_users(size)
  assert len(items) == size.users
  assert items.lengths.min() == size.shortest
  assert items.lengths.max() == size.longest
  assert items.values.min() == 1
  assert items.values.max() == size.items
  for task, classes in (('gender', 2), ('age', 7)):
    assert (
      np.bincount(labels[task]).tolist()
      == np.bincount(labels[task], minlength=classes).tolist()
    )
    assert len(labels[task]) == size.users
    # Every class is frequent enough to be in each split of a small set.
    assert np.bincount(labels[task]).min() > 0.02 * size.users


def test_users_of_one_behaviour_can_be_made():
  items, _ = make_users(Size(users=50, items=20, shortest=1, longest=2))
  assert set(items.lengths) == {1, 2}


@pytest.mark.parametrize(('task', 'ceiling'), [('gender', 0.9), ('age', 0.6)])
def test_behaviours_tell_a_part_of_a_label(task, ceiling):
  items, labels = make_users(SIZES['quickstart'])
  label = labels[task]
  bags = sparse.csr_matrix(
    (np.ones(len(items.values)), items.values, items.offsets)
  )
  model = LogisticRegression(C=0.01).fit(bags[:5000], label[:5000])
  accuracy = model.score(bags[5000:], label[5000:])
  majority = np.bincount(label).max() / len(label)
  assert majority + 0.05 < accuracy < ceiling


@pytest.mark.parametrize('task', ['pretrain', 'gender', 'age', 'conversion'])
def test_tiny_data_sets_are_prepared(tmp_path, task):
  builder = tfds.builder(f'synthetic_users/tiny_{task}', data_dir=tmp_path)
  data = load(builder)
  sizes = {name: len(part.items) for name, part in data.splits.items()}
  if task == 'pretrain':
    assert sizes == {'train': 180, 'validation': 20}
  else:
    assert sizes == {'train': 120, 'validation': 40, 'test': 40}
    classes = {'gender': 2, 'age': 7, 'conversion': 2}[task]
    assert len(data.vocabulary.labels) == classes
  assert len(data.vocabulary.items) == 60


def test_new_tasks_leave_the_users_as_they_were():
  items, labels = make_users(SIZES['tiny'])
  found = [items.values, labels['gender'], labels['age']]
  assert [zlib.crc32(column.tobytes()) for column in found] == [
    2941496371,
    3754235583,
    3025697123,
  ]


def test_conversion_is_rare_and_depends_on_the_last_behaviours():
  items, labels = make_users(SIZES['quickstart'])
  label = labels['conversion']
  assert label.mean() == pytest.approx(0.05, abs=0.001)
  scores = {}
  for name, columns in (('first', slice(None, 8)), ('last', slice(-8, None))):
    bags = np.zeros((len(items), SIZES['quickstart'].items + 1), np.float32)
    for row in range(len(items)):
      bags[row, items[row][columns]] = 1
    model = LogisticRegression(C=0.1).fit(bags[:4500], label[:4500])
    score = model.decision_function(bags[4500:])
    scores[name] = roc_auc_score(label[4500:], score)
  assert 0.6 < scores['last'] < 0.95
  assert scores['last'] > scores['first'] + 0.03


@pytest.mark.parametrize('task', ['click', 'thumb_up'])
def test_rows_of_a_ranking_are_the_next_items(tmp_path, task):
  builder = tfds.builder(f'synthetic_users/tiny_{task}', data_dir=tmp_path)
  data = load(builder)
  assert data.kind == 'ranking'
  chosen = make_next_items(SIZES['tiny'], liked=task == 'thumb_up')
  items, _ = make_users(SIZES['tiny'])
  rows = []
  for split in data.splits.values():
    for name, behaviours, positive, others in rows_of(split):
      user = int(name.removeprefix('user_'))
      names = [data.vocabulary.labels[at] for at in (positive, *others)]
      numbers = [int(name.removeprefix('item_')) for name in names]
      assert sorted(numbers) == sorted(chosen[user].tolist())
      assert behaviours == items[user].tolist()
      rows.append((user, numbers[0]))
  expected = [(user, item) for user in range(200) for item in chosen[user]]
  assert sorted(rows) == sorted(expected)
  assert len(set(rows)) == len(rows)


def test_liked_items_are_some_of_the_next():
  all_items = make_next_items(SIZES['tiny'], liked=False)
  liked = make_next_items(SIZES['tiny'], liked=True)
  for user in range(200):
    assert set(liked[user]) <= set(all_items[user])
    assert len(all_items[user]) == len(set(all_items[user])) <= 5
  assert len(liked.values) < 0.9 * len(all_items.values)
