"""From tables of events and of labels to users, column by column."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.table_times import (
  BadTimeError,
  Times,
  first_inexact,
  inexact,
  parse_times,
)
from adaptssr_jax.data.readers.tables import TEXT, Table
from adaptssr_jax.data.rows import DataError, Rows, shown


class Users(NamedTuple):
  """All users of the events, in the order they first appear.

  Args:
    ids: the raw user ids.
    items: their behaviours, oldest first, item numbers from 1.
    item_ids: the raw item ids, in the order of their numbers.
  """

  ids: pa.Array
  items: Ragged
  item_ids: pa.Array


def read_users(
  events: Sequence[Table], *, user: str, item: str, time: str
) -> Users:
  """Groups behaviours by user and puts them in order of time.

  Args:
    events: tables of behaviours; their rows count one after the other.
    user: name of the column of user ids.
    item: name of that of item ids.
    time: name of that of times; those of the same time stay in their order.

  Returns:
    The users.

  Raises:
    DataError: an id or a time is missing or wrong.
  """
  for table in events:
    for column in (user, item, time):
      check_filled(table, column)
  users, ids = encode(events, user)
  items, item_ids = encode(events, item)
  order = np.lexsort((_times(events, time), users))
  behaviours = items[order] + np.int32(1)
  return Users(
    ids, Ragged.from_lengths(behaviours, np.bincount(users)), item_ids
  )


def labels_of(
  tables: Sequence[Table],
  ids: pa.Array,
  *,
  user: str,
  label: str,
  required: bool = False,
) -> pa.Array:
  """The label of each user, null for those who have none.

  Args:
    tables: tables of labels; a user may have several rows if all agree.
    ids: the users in question.
    user: name of the column of user ids.
    label: name of that of labels.
    required: whether a row without a label is an error.

  Returns:
    Text [users].

  Raises:
    DataError: a row has no user, or no label if required, or a user's rows do
      not agree.
  """
  for table in tables:
    for column in (user, *([label] if required else [])):
      check_filled(table, column)
  users, known_ids = encode(tables, user)
  codes, labels = encode(tables, label)
  first = np.zeros(len(known_ids), np.int64)
  # Of several values for one place numpy keeps the last: here the first row.
  first[users[::-1]] = np.arange(len(users))[::-1]
  wrong = np.flatnonzero(codes != codes[first[users]])
  if len(wrong):
    row = int(wrong[0])
    before = int(first[users[row]])
    values = [shown(labels[int(codes[at])].as_py()) for at in (before, row)]
    raise DataError(
      f'user {shown(known_ids[int(users[row])].as_py())} has the {label} '
      f'{values[0]} in {_where(tables, before)} and {values[1]} in '
      f'{_where(tables, row)}; a user has one label'
    )
  of_known = labels.take(pa.array(codes[first]))
  of_users = of_known.take(pc.index_in(ids, value_set=known_ids))
  return pc.if_else(pc.equal(of_users, ''), None, of_users)


def labelled_rows(
  users: Users, labels: pa.Array, paths: Sequence[str | os.PathLike]
) -> tuple[Rows, list[str]]:
  """The rows of a classification task.

  Args:
    users: all users.
    labels: of each user, text or null.
    paths: of the events.

  Returns:
    The users with a label, and the names of the classes: sorted, by value if
    all are integers.

  Raises:
    DataError: no user has a label.
  """
  labelled = np.flatnonzero(labels.is_valid().to_numpy(zero_copy_only=False))
  if not len(labelled):
    raise no_label(paths)
  encoded = labels.take(pa.array(labelled)).dictionary_encode()
  names = encoded.dictionary.to_pylist()
  classes = class_names(names)
  number = {name: place for place, name in enumerate(classes)}
  numbers = np.array([number[name] for name in names], np.int32)
  rows = Rows(
    user_id=users.ids.take(pa.array(labelled)).to_pylist(),
    items=users.items.take(labelled),
    label=numbers[encoded.indices.to_numpy()],
  )
  return rows, classes


def no_label(paths: Sequence[str | os.PathLike]) -> DataError:
  """What is wrong if no user of these events has a label."""
  events = ', '.join(map(str, paths))
  return DataError(
    f'no user of the events has a label ({events}); are the user ids of the '
    'labels written like those of the events?'
  )


def class_names(names: Collection[str]) -> list[str]:
  """Distinct labels in order: by value if all are integers.

  Example:
    >>> class_names(['10', '9']), class_names(['10', '9', 'x'])
    (['9', '10'], ['10', '9', 'x'])
  """
  integers = all(re.fullmatch('[+-]?[0-9]+', name) for name in names)
  return sorted(names, key=lambda name: (int(name) if integers else 0, name))


def check_filled(table: Table, column: str) -> None:
  """Raises `DataError` for the first cell that is empty."""
  cells = table.cells[column]
  empty = cells.is_null()
  if cells.type == TEXT:
    empty = pc.fill_null(pc.equal(cells, ''), True)
  row = pc.index(empty, True).as_py()
  if row >= 0:
    raise DataError(f'{table.where(row)}: column {column!r} is empty')


def encode(tables: Sequence[Table], column: str) -> tuple[np.ndarray, pa.Array]:
  """Distinct cells in the order they appear, and which of them each one is."""
  chunks = [chunk for table in tables for chunk in table.cells[column].chunks]
  cells = pc.fill_null(pa.chunked_array(chunks, TEXT), '')
  # Every chunk of the result has the distinct cells of all chunks.
  encoded = cells.dictionary_encode().chunks
  codes = [chunk.indices.to_numpy() for chunk in encoded]
  return np.concatenate(codes), encoded[-1].dictionary


def _times(tables: Sequence[Table], column: str) -> np.ndarray:
  parts = [times_of(table, column) for table in tables]
  paths = [table.path for table in tables]
  check_kinds(paths, [part.kind for part in parts], column)
  if any(part.values.dtype == np.float64 for part in parts):
    check_exact(map(rounded, tables, parts))
  return np.concatenate([part.values for part in parts])


def times_of(table: Table, column: str) -> Times:
  """The times of a table; `DataError` for the first that is none."""
  try:
    return parse_times(table.cells[column])
  except BadTimeError as error:
    raise DataError(f'{table.where(error.row)}: {error}') from None


def rounded(table: Table, times: Times) -> str | None:
  """What would be wrong if these times became floats, if anything."""
  row = first_inexact(times)
  if row is None:
    return None
  return f'{table.where(row)}: {inexact(times.values[row])}'


def check_exact(complaints: Iterable[str | None]) -> None:
  """Raises `DataError` for the first that `rounded` has of a file."""
  for complaint in filter(None, complaints):
    raise DataError(complaint)


def check_kinds(
  paths: Sequence[str | os.PathLike], kinds: Sequence[str], column: str
) -> None:
  """Raises `DataError` for the first file with another kind of times."""
  for path, kind in zip(paths, kinds, strict=True):
    if kind != kinds[0]:
      raise DataError(
        f'column {column!r} of {path} holds {kind}, that of {paths[0]} '
        f'{kinds[0]}; all files must hold the same'
      )


def _where(tables: Sequence[Table], row: int) -> str:
  """The file and line of a row, counted over all tables."""
  for table in tables:
    if row < len(table):
      return table.where(row)
    row -= len(table)
  raise IndexError(row)
