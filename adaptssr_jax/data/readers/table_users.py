"""From files of behaviours and of labels to users, by DuckDB.

All rows of all files go into a database on the disk, each with one number for
its file and line. DuckDB then groups, joins and sorts them, on the disk as far
as they do not fit the memory that it is given.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.lines import Span
from adaptssr_jax.data.readers.tables import FILE, Tables, read_columns
from adaptssr_jax.data.rows import DataError, Rows, Vocabulary, shown

# A float holds every integer up to here.
_EXACT = 2**53
_BATCH = 1 << 20
# Between two words of progress.
_SECONDS = 10.0
DATABASE = """
create table events (row bigint, user_id varchar, item_id varchar,
  label varchar, number bigint, real double, moment bigint);
create table labels (row bigint, user_id varchar, label varchar);
"""


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

  @property
  def label_names(self) -> list[str]:
    """The distinct labels, none for pre-training."""
    return [] if self.labels is None else self.labels.unique().to_pylist()

  def rows(self, values: np.ndarray, classes: Sequence[str]) -> Rows:
    """The users as rows, with other numbers for the behaviours of all."""
    rows = Rows(self.ids.to_pylist(), Ragged(values, self.items.offsets))
    if self.labels is None:
      return rows
    known = pa.array(classes, self.labels.type)
    label = pc.index_in(self.labels, value_set=known).to_numpy()
    return rows._replace(label=label.astype(np.int32))


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
  database.execute(DATABASE)
  _load(database, 'events', events, tell)
  time_order = sort_key(events, [first_times(database, 'events')])
  if labels not in (None, events):
    _load(database, 'labels', labels, tell)
  users = group_users(database, events, labels, time_order, tell=tell)
  if not len(users.first):
    raise no_label(events)
  classes = class_names(users.label_names)
  rows = users.rows(users.items.values, classes)
  return rows, Vocabulary(users.item_ids.to_pylist(), classes)


def _load(
  database: duckdb.DuckDBPyConnection,
  name: str,
  tables: Tables,
  tell: Callable[[str], None],
) -> None:
  """Puts all rows into one table of the database."""
  said, total = time.monotonic(), 0
  for file, path in enumerate(tables.paths):
    count = 0
    for block in read_columns(database, Span(path), tables.columns):
      insert(database, name, block, file)
      count += len(block)
      if time.monotonic() - said > _SECONDS:
        tell(f'Read {count:,} rows of {path}...')
        said = time.monotonic()
    total += count
  if not total:
    raise no_row(tables)


def insert(
  database: duckdb.DuckDBPyConnection, name: str, block: pa.Table, file: int = 0
) -> None:
  """Puts rows of `read_columns` of one of the files into a table."""
  database.register('found', block)
  database.execute(
    f'insert into {name} by name select line + {file * FILE} as row, * exclude '
    '(line) from found'
  )


def no_row(tables: Tables) -> DataError:
  """What is wrong where a condition leaves no row."""
  return DataError(
    f'no row of {tables} meets the condition {tables.columns.where!r}'
  )


def no_label(events: Tables) -> DataError:
  """What is wrong where no user is left for a task."""
  return DataError(
    f'no user of the events has a label ({events}); are the user ids of the '
    'labels written like those of the events?'
  )


def first_times(
  database: duckdb.DuckDBPyConnection, name: str
) -> tuple[int | None, int | None, int | None, list[int] | None]:
  """The first rows whose times are of each kind, of a table or of a part of it.

  Returns:
    The first row whose time is a moment, that whose time is none, and that
    whose time is a floating-point number; and the first row whose time is an
    integer that a float does not hold, with that time.
  """
  return database.execute(
    'select min(row) filter (moment is not null), '
    'min(row) filter (moment is null), min(row) filter (real is not null), '
    'min([row, number]) filter '
    f'(number not between -{_EXACT} and {_EXACT}) from {name}'
  ).fetchone()


def sort_key(events: Tables, found: Sequence[tuple]) -> str:
  """SQL of what orders the behaviours of a user, where all are comparable.

  Args:
    found: `first_times` of all parts.

  Raises:
    DataError: some times cannot be compared with others.
  """
  moment, other, real, large = (
    min((row for row in rows if row is not None), default=None)
    for rows in zip(*found, strict=True)
  )
  if moment is not None and other is not None:
    first, second = sorted([moment, other])
    kind = 'timestamp' if first == moment else 'number'
    raise DataError(
      f'{events.place(second)}: the time is not a {kind}, as it is in '
      f'{events.place(first)}; all must be of one kind'
    )
  if real is not None and large is not None:
    raise DataError(
      f'{events.place(large[0])}: time {large[1]} is an integer that would be '
      f'rounded, because that in {events.place(real)} is none; write all times '
      'as integers or as timestamps'
    )
  if moment is not None:
    return 'moment'
  return 'number' if real is None else 'coalesce(real, number::double)'


def class_names(names: Collection[str]) -> list[str]:
  """Distinct labels in order: by value if all are integers.

  Example:
    >>> class_names(['10', '9']), class_names(['10', '9', 'x'])
    (['9', '10'], ['10', '9', 'x'])
  """
  integers = all(re.fullmatch('[+-]?[0-9]+', name) for name in names)
  return sorted(names, key=lambda name: (int(name) if integers else 0, name))


def group_users(
  database: duckdb.DuckDBPyConnection,
  events: Tables,
  labels: Tables | None,
  time_order: str,
  *,
  tell: Callable[[str], None],
) -> Users:
  """Groups the behaviours in a database by user.

  Args:
    database: its tables `events` and `labels` have all rows of the users.
    events: what the first is made of.
    labels: what the second is made of, or `events`; None for pre-training.
    time_order: what orders behaviours, as `sort_key` gives it.

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
  items = _sorted_items(database, int(sizes.sum()), time_order)
  item_ids = database.sql('select item_id from items order by place')
  return Users(
    found['user_id'],
    found['first'].to_numpy(),
    Ragged.from_lengths(items, sizes),
    item_ids.to_arrow_table()['item_id'],
    None if labels is None else found['label'],
  )


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
  database: duckdb.DuckDBPyConnection, count: int, time_order: str
) -> np.ndarray:
  """The items of all users, one after the other, int32 [count]."""
  # Row by row: DuckDB sorts on the disk, but makes lists in memory alone.
  batches = database.sql(
    'select items.place::integer from events join users using (user_id) join '
    f'items using (item_id) order by first, {time_order}, row'
  ).to_arrow_reader(_BATCH)
  values = np.empty(count, np.int32)
  end = 0
  for batch in batches:
    start, end = end, end + len(batch)
    values[start:end] = batch.column(0).to_numpy()
  return values
