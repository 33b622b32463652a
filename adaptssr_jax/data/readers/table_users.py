"""From files of behaviours and of labels to users, by DuckDB.

All rows of all files go into a database on the disk, each with one number for
its file and line. DuckDB then groups, joins and sorts them, on the disk as far
as they do not fit the memory that it is given.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.table_rules import (
  EXACT,
  FILE,
  Tables,
  class_names,
  class_numbers,
  no_label,
  no_row,
  sort_key,
)
from adaptssr_jax.data.readers.tables import (
  Part,
  read_columns,
)
from adaptssr_jax.data.rows import DataError, Rows, Vocabulary, shown

_BATCH = 1 << 20
# Between two words of progress.
_SECONDS = 10.0


@contextlib.contextmanager
def open_database(
  folder: pathlib.Path, *, memory_limit: str = '', threads: int = 0
) -> Iterator[duckdb.DuckDBPyConnection]:
  """A database in a folder, removed at the end.

  Args:
    folder: for it, and for what does not fit the memory while it sorts.
    memory_limit: such as '4GB'; by default 80% of the machine.
    threads: that work; by default one a core.

  Raises:
    DataError: there is no such limit, or it does not suffice.
    OSError: the disk is full, or may not be written to.
  """
  folder.mkdir(parents=True, exist_ok=True)
  settings = {'memory_limit': memory_limit, 'threads': threads}
  settings = {name: value for name, value in settings.items() if value}
  with tempfile.TemporaryDirectory(prefix='tables.', dir=folder) as inside:
    settings['temp_directory'] = f'{inside}/spilled'
    try:
      database = duckdb.connect(f'{inside}/users', config=settings)
    except (duckdb.ProgrammingError, duckdb.DataError) as error:
      raise DataError(f'memory limit {memory_limit!r}: {error}') from None
    try:
      yield database
    except duckdb.OutOfMemoryException as error:
      raise DataError(f'allow more memory to prepare: {error}') from None
    except duckdb.IOException as error:
      raise OSError(str(error)) from None
    finally:
      database.close()


class Users(NamedTuple):
  """Users in the order they first appear, with their behaviours in order.

  Args:
    ids: text [users].
    first: the row where each first appears, int64 [users].
    items: the behaviours of each, numbers from 1.
    item_ids: text, in the order of their numbers, which is that in which they
      first appear.
    labels: text [users]; None for pre-training.
  """

  ids: pa.ChunkedArray
  first: np.ndarray
  items: Ragged
  item_ids: pa.ChunkedArray
  labels: pa.ChunkedArray | None


def read_users(
  database: duckdb.DuckDBPyConnection,
  events: Tables,
  labels: Tables | None,
  *,
  tell: Callable[[str], None],
) -> tuple[Rows, Vocabulary]:
  """Groups behaviours by user and puts them in order of time.

  Args:
    database: an empty one.
    events: behaviours; those of the same time stay in the order of their rows.
    labels: labels, which may stand in `events`; None for pre-training.

  Returns:
    The users in the order they first appear, of a task those with a label; and
    the items in the order they first appear, with the names of the classes.

  Raises:
    DataError: a row is wrong, or the labels of a user contradict each other.
  """
  _load(database, 'events', events, tell)
  moments = _sort_key(database, events)
  if labels not in (None, events):
    _load(database, 'labels', labels, tell)
  users = group_users(database, events, labels, moments, tell=tell)
  if not len(users.first):
    raise no_label(events)
  rows = Rows(users.ids.to_pylist(), users.items)
  item_ids = users.item_ids.to_pylist()
  if labels is None:
    return rows, Vocabulary(item_ids)
  classes = class_names(users.labels.unique().to_pylist())
  label = class_numbers(users.labels, classes)
  return rows._replace(label=label), Vocabulary(item_ids, classes)


def group_users(
  database: duckdb.DuckDBPyConnection,
  events: Tables,
  labels: Tables | None,
  moments: str,
  *,
  tell: Callable[[str], None],
) -> Users:
  """Groups the behaviours in a database by user.

  Args:
    database: with a table `events`, and `labels` if they are others.
    events: what the first is made of.
    labels: what the second is made of, or `events`; None for pre-training.
    moments: what orders behaviours, as `sort_key` gives it.

  Returns:
    The users; of a task, those with a label.

  Raises:
    DataError: the labels of a user contradict each other.
  """
  database.execute(
    'create table items as select item_id, row_number() over (order by '
    'min(row)) as place from events group by item_id'
  )
  users = (
    'select user_id, min(row) as first, count(*) as size from events '
    'group by user_id'
  )
  if labels is not None:
    _label_users(database, 'events' if labels == events else 'labels', labels)
    users = f'select * from ({users}) join labelled using (user_id)'
  database.execute(f'create table users as {users}')
  found = database.sql('from users order by first').to_arrow_table()
  sizes = found['size'].to_numpy()
  tell(f'Sorting {sizes.sum():,} behaviours of {len(sizes):,} users...')
  items = _sorted_items(database, int(sizes.sum()), moments)
  item_ids = database.sql('select item_id from items order by place')
  return Users(
    found['user_id'],
    found['first'].to_numpy(),
    Ragged.from_lengths(items, sizes),
    item_ids.to_arrow_table()['item_id'],
    None if labels is None else found['label'],
  )


def _load(
  database: duckdb.DuckDBPyConnection,
  name: str,
  tables: Tables,
  tell: Callable[[str], None],
) -> None:
  """Puts all rows into one table of the database."""
  said = time.monotonic()
  for number, path in enumerate(tables.paths):
    count = 0
    for block in read_columns(database, Part(path, tables.columns)):
      database.register('found', block)
      found = (
        f'select line + {number * FILE} as row, * exclude (line) from found'
      )
      database.execute(f'create table if not exists {name} as {found} limit 0')
      database.execute(f'insert into {name} {found}')
      count += len(block)
      if time.monotonic() - said > _SECONDS:
        tell(f'Read {count:,} rows of {path}...')
        said = time.monotonic()
  if not database.execute(f'select 1 from {name} limit 1').fetchall():
    raise no_row(tables)


def _sort_key(database: duckdb.DuckDBPyConnection, events: Tables) -> str:
  large = f'number not between -{EXACT} and {EXACT}'
  (found,) = database.execute(
    'select min(row) filter (moment is not null), '
    'min(row) filter (moment is null), min(row) filter (real is not null), '
    f'min(row) filter ({large}), arg_min(number, row) filter ({large}) '
    'from events'
  ).fetchall()
  return sort_key(events, *found)


def _label_users(
  database: duckdb.DuckDBPyConnection, name: str, labels: Tables
) -> None:
  """Makes the table `labelled` of the users with a label, which is one."""
  database.execute(
    "create temp view given as select * replace (coalesce(label, '') as label) "
    f'from {name}'
  )
  database.execute(
    'create table of_users as select user_id, arg_min(label, row) as label, '
    'min(row) as first, min(label) <> max(label) as differ from given '
    'group by user_id'
  )
  found = database.execute(
    'select user_id, first, of_users.label, row, given.label from of_users '
    'join given using (user_id) where differ and given.label <> of_users.label '
    'order by row limit 1'
  ).fetchone()
  if found:
    user, first, before, row, label = found
    raise DataError(
      f'user {shown(user)} has the {labels.columns.texts["label"]} '
      f'{shown(before)} in {labels.place(first)} and {shown(label)} in '
      f'{labels.place(row)}; a user has one label'
    )
  database.execute(
    'create view labelled as select user_id, label from of_users '
    "where label <> ''"
  )


def _sorted_items(
  database: duckdb.DuckDBPyConnection, count: int, moments: str
) -> np.ndarray:
  """The items of all users, one after the other, int32 [count]."""
  # Row by row: DuckDB sorts on the disk, but makes lists in memory alone.
  batches = database.sql(
    'select items.place::integer from events join users using (user_id) join '
    f'items using (item_id) order by first, {moments}, row'
  ).to_arrow_reader(_BATCH)
  values = np.empty(count, np.int32)
  end = 0
  for batch in batches:
    start, end = end, end + len(batch)
    values[start:end] = batch.column(0).to_numpy()
  return values
