"""Synthetic ratings in the formats of both copies of MovieLens."""

import pathlib
import zipfile

import numpy as np
import pyarrow as pa

from adaptssr_jax.data.histories import Log
from adaptssr_jax.data.movielens_users import last_ten_rows
from adaptssr_jax.data.readers.movielens_files import EDITIONS

SIZES = ('100k', '1m')
TITLES = {number: f'Film {number} (19{number:02})' for number in range(10, 50)}
# Latin-1 in one copy, UTF-8 in the other; the last title has a line separator.
TITLES |= {11: 'Contempt (Le Mépris) (1963)', 12: 'Alien³ (1992)', 13: 'A\x85B'}


def make_ratings(size: str) -> tuple[list[tuple], list[tuple]]:
  """Ratings with many equal times, grouped by user or not, and their users."""
  rng = np.random.default_rng(0)
  ratings = [
    (user, int(film), int(rng.integers(1, 6)), 900 + int(rng.integers(5)))
    for user in range(1, 31)
    for film in rng.permutation(list(TITLES))[: rng.integers(11, 25)]
  ]
  ratings += [(31, film, 5, 900) for film in range(10, 20)]  # ten: no history
  if size == '100k':
    ratings = [ratings[at] for at in rng.permutation(len(ratings))]
  ages = (
    (1, 18, 25, 35, 45, 50, 56) if size == '1m' else (7, 24, 34, 36, 49, 73)
  )
  jobs = list(EDITIONS[size].occupations)
  users = [
    (user, 'FM'[user % 2], ages[user % len(ages)], jobs[user % 21], '02460')
    for user in range(1, 32)
  ]
  return ratings, users


def _lines(rows: list[tuple], separator: str, end: str = '\n') -> str:
  return ''.join(separator.join(map(str, row)) + end for row in rows)


def grouplens_files(size: str, ratings=None, users=None) -> dict[str, bytes]:
  these_ratings, these_users = make_ratings(size)
  ratings, users = ratings or these_ratings, users or these_users
  if size == '100k':
    swapped = [(user, age, sex, *rest) for user, sex, age, *rest in users]
    return {
      'ml-100k/u.data': _lines(ratings, '\t').encode(),
      'ml-100k/u.user': _lines(swapped, '|').encode(),
    }
  films = [(number, title, 'Drama|War') for number, title in TITLES.items()]
  return {
    'ml-1m/ratings.dat': _lines(ratings, '::').encode(),
    'ml-1m/users.dat': _lines(users, '::').encode(),
    'ml-1m/movies.dat': _lines(films, '::').encode('latin-1'),
  }


def wheel_files(size: str) -> dict[str, bytes]:
  ratings, users = make_ratings(size)
  prefix, end = ('1m_', '\r\n') if size == '1m' else ('', '\n')
  named = [
    (f'{prefix}{user}', TITLES[film] if size == '1m' else film, *rest)
    for user, film, *rest in ratings
  ]
  people = [(f'{prefix}{row[0]}', row[2], row[1], *row[3:]) for row in users]
  header = [('user_id:token', 'second:float', 'third:token', 'fourth:float')]
  layout = EDITIONS[size].wheel
  return {
    layout.ratings.member: _lines(header + named, '\t', end).encode(),
    layout.users.member: _lines(header + people, '\t', end).encode(),
  }


def write_zip(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for member, data in files.items():
      archive.writestr(member, data)
  return path


def unpack(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
  for member, data in files.items():
    (folder / member).parent.mkdir(parents=True, exist_ok=True)
    (folder / member).write_bytes(data)
  return folder / next(iter(files)).split('/')[0]


def log_of(ratings: list[tuple], **attributes) -> Log:
  """A log; attributes are those of the users, in the order of their numbers."""
  columns = map(list, zip(*ratings, strict=True))
  names = ('user', 'item', 'rating', 'time')
  behaviours = pa.table(dict(zip(names, columns, strict=True)))
  user = sorted(set(behaviours['user'].to_pylist()))
  return Log(behaviours, pa.table({'user': user} | attributes))


def all_tasks(log: Log, size: str) -> dict:
  """The splits and the vocabulary of each task with the last ten films."""
  tasks = ['pretrain', 'gender', 'age', 'occupation', 'click', 'thumb_up']
  tasks += ['click_by_user', 'thumb_up_by_user']
  return {task: last_ten_rows(log, task, EDITIONS[size])[:2] for task in tasks}


def plain(rows) -> list[tuple]:
  count = len(rows.items)
  label = [None] * count if rows.label is None else rows.label.tolist()
  targets = [()] * count if rows.targets is None else rows.targets
  return [
    (rows.user_id[at], *rows.items[at], label[at], *targets[at])
    for at in range(count)
  ]


def assert_read_back(users, splits, vocabulary):
  """Checks that a prepared data set equals what was read."""
  assert list(users.vocabulary.items) == list(vocabulary.items)
  assert list(users.vocabulary.labels) == list(vocabulary.labels)
  assert list(users.splits) == list(splits)
  for split, rows in splits.items():
    columns = users.splits[split]
    names = columns.user_ids(np.arange(len(columns.items)))
    assert plain(columns._replace(user_id=names)) == plain(rows)
