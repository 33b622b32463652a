"""Reads the ratings and the users of a copy of MovieLens."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adaptssr_jax.data.readers.archives import read_member, unreadable
from adaptssr_jax.data.readers.movielens_editions import Layout, Table
from adaptssr_jax.data.rows import DataError, shown


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


_MOST_REASON = 100
# Beyond these a file is damaged: no year after 2105, say.
_MOST_USER = 2**31 - 1
_MOST_AGE = 120
_MOST_RATING = 5
_MOST_SECOND = 2**32 - 1


def read(path: pathlib.Path, layout: Layout) -> Log:
  """Reads all ratings and users of a copy.

  Args:
    path: of the archive, or of the folder that was in it.

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
        f'{table.separator.join(table.columns)!r} '
        # That of a conversion holds the whole cell.
        f'({str(error)[:_MOST_REASON]}); '
        'download it again'
      ) from error


def _text(path: pathlib.Path, table: Table) -> str:
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
    raise unreadable(f'{path}, {table.member}', error) from error
  try:
    return data.decode(table.encoding)
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise DataError(
      f'{path}, {table.member}, line {line} is not {table.encoding} ({error}); '
      'download it again'
    ) from error
