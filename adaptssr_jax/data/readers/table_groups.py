"""Users and their behaviours in order, from the rows of a database."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.tables import Tables
from adaptssr_jax.data.rows import DataError, Rows, ignore_progress, shown

# Of a database of `read_columns`; a row has one number for its file and line.
DATABASE = """
create table events (row bigint, user_id varchar, item_id varchar,
  label varchar, number bigint, real double, moment bigint);
create table labels (row bigint, user_id varchar, label varchar);
"""
# A float holds every integer up to here.
_EXACT = 2**53
_BATCH = 1 << 20


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
    """The users as rows; `values` are the numbers of all their behaviours."""
    rows = Rows(self.ids.to_pylist(), Ragged(values, self.items.offsets))
    if self.labels is None:
      return rows
    known = pa.array(classes, self.labels.type)
    label = pc.index_in(self.labels, value_set=known).to_numpy()
    return rows._replace(label=label.astype(np.int32))


def first_times(
  database: duckdb.DuckDBPyConnection, name: str
) -> tuple[int | None, int | None, int | None, list[int] | None]:
  """Finds the first row with each kind of time, to detect mixed kinds.

  Returns:
    Row numbers, None where there is no such row: of the first timestamp, the
    first time that is no timestamp, and the first float; and [row, time] of the
    first integer that float64 cannot represent exactly.
  """
  (found,) = database.execute(
    'select min(row) filter (moment is not null), '
    'min(row) filter (moment is null), min(row) filter (real is not null), '
    'min([row, number]) filter '
    f'(number not between -{_EXACT} and {_EXACT}) from {name}'
  ).fetchall()
  return found


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
  on_progress: Callable[[str], None] = ignore_progress,
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
  on_progress(f'Sorting {sizes.sum():,} behaviours of {len(sizes):,} users...')
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
