"""The made users are reproducible, and partly predictable."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from adaptssr_jax.data import (
  load,
)
from adaptssr_jax.data.synthetic_users import SIZES, Size, make_users


def lists(ragged):
  return [ragged[row].tolist() for row in range(len(ragged))]


def test_made_users_are_reproducible():
  first, labels = make_users(SIZES['tiny'])
  again, same = make_users(SIZES['tiny'])
  other, _ = make_users(SIZES['tiny'], seed=1)
  assert lists(first) == lists(again)
  for task in ('gender', 'age'):
    assert labels[task].tolist() == same[task].tolist()
  assert lists(first) != lists(other)


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
    # No class is so rare that a split of a small set might miss it.
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


@pytest.mark.parametrize('task', ['pretrain', 'gender', 'age'])
def test_tiny_data_sets_are_prepared(tmp_path, task):
  builder = tfds.builder(f'synthetic_users/tiny_{task}', data_dir=tmp_path)
  data = load(builder)
  sizes = {name: len(part.items) for name, part in data.splits.items()}
  if task == 'pretrain':
    assert sizes == {'train': 180, 'validation': 20}
  else:
    assert sizes == {'train': 120, 'validation': 40, 'test': 40}
    assert len(data.vocabulary.labels) == {'gender': 2, 'age': 7}[task]
  assert len(data.vocabulary.items) == 60
