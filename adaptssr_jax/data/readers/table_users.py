"""Groups the rows of files of behaviours and labels by user, in DuckDB.

All rows go into a database on disk, each with a number that identifies its file
and line. DuckDB then groups, joins and sorts them, and uses the disk for what
exceeds its memory limit.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import duckdb
import pyarrow as pa

from adaptssr_jax.data.readers.lines import Span
from adaptssr_jax.data.readers.table_groups import (
  DATABASE,
  class_names,
  first_times,
  group_users,
  notes_of,
  sort_key,
)
from adaptssr_jax.data.readers.tables import FILE, Tables, read_columns
from adaptssr_jax.data.rows import (
  DataError,
  Rows,
  Vocabulary,
  ignore_progress,
)

# Between two lines of progress.
_SECONDS = 10.0


@contextlib.contextmanager
def open_database(
  folder: pathlib.Path, *, memory_limit: str = ''
) -> Iterator[duckdb.DuckDBPyConnection]:
  """Opens an empty database in a folder and removes it at the end.

  Args:
    folder: for the database, and for data that does not fit in memory.
    memory_limit: such as '4GB'; by default 80% of the machine's memory.

  Raises:
    DataError: the limit cannot be parsed, or is too low.
    OSError: the disk is full or cannot be written to.
  """
  folder.mkdir(parents=True, exist_ok=True)
  settings = {'memory_limit': memory_limit} if memory_limit else {}
  with tempfile.TemporaryDirectory(prefix='tables.', dir=folder) as inside:
    settings['temp_directory'] = f'{inside}/spilled'
    try:
      database = duckdb.connect(f'{inside}/users', config=settings)
    except (duckdb.ProgrammingError, duckdb.DataError) as error:
      raise DataError(f'memory limit {memory_limit!r}: {error}') from None
    try:
      yield database
    except duckdb.OutOfMemoryException as error:
      raise DataError(
        f'preparing needs more memory, raise the memory limit: {error}'
      ) from None
    # A full disk makes either the write or the commit fail.
    except (duckdb.IOException, duckdb.TransactionException) as error:
      raise OSError(str(error)) from None
    finally:
      database.close()


def read_users(
  events: Tables,
  labels: Tables | None,
  folder: pathlib.Path,
  *,
  memory_limit: str = '',
  on_progress: Callable[[str], None] = ignore_progress,
) -> tuple[Rows, Vocabulary, list[str]]:
  """Reads behaviours and labels, and groups them by user.

  Args:
    labels: the labels, equal to `events` if they are a column of it; None for
      pre-training.
    folder: as for `open_database`, like the next argument.
    on_progress: called with each line of progress.

  Returns:
    The users in the order in which they first appear, for a task only those
    with a label; the items in the order in which they first appear, with the
    names of the classes; and notes on the users that a task leaves out.

  Raises:
    DataError: a row is invalid, a user has different labels, or the memory
      limit is too low.
    OSError: the disk is full or the folder cannot be written to.
  """
  with open_database(folder, memory_limit=memory_limit) as database:
    database.execute(DATABASE)
    _load(database, 'events', events, on_progress)
    time_order = sort_key([first_times(database, 'events')], events)
    if labels not in (None, events):
      _load(database, 'labels', labels, on_progress)
    users = group_users(
      database, events, labels, time_order, on_progress=on_progress
    )
  check_any_user(events, len(users.first))
  classes = class_names(users.label_names)
  rows = users.rows(users.items.values, classes)
  vocabulary = Vocabulary(users.item_ids.to_pylist(), classes)
  return rows, vocabulary, notes_of([users.counts])


def _load(
  database: duckdb.DuckDBPyConnection,
  name: str,
  tables: Tables,
  on_progress: Callable[[str], None],
) -> None:
  """Inserts all rows of `tables` into a table of the database."""
  reported = time.monotonic()
  for file, path in enumerate(tables.paths):
    count = 0
    for block in read_columns(Span(path), tables.columns):
      insert(database, name, block, file)
      count += len(block)
      if time.monotonic() - reported > _SECONDS:
        on_progress(f'Read {count:,} rows of {path}...')
        reported = time.monotonic()


def insert(
  database: duckdb.DuckDBPyConnection, name: str, block: pa.Table, file: int = 0
) -> None:
  """Inserts rows of `read_columns`; `file` is the index of their file."""
  database.register('found', block)
  database.execute(
    f'insert into {name} by name select line + {file * FILE} as row, * exclude '
    '(line) from found'
  )


def check_any_user(events: Tables, count: int) -> None:
  """Raises `DataError` if a task has no user."""
  if not count:
    raise DataError(
      f'no user of the events has a label ({events}); are the user ids of the '
      'labels written like those of the events?'
    )
