"""Groups the rows of a database into users with their behaviours in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.tables import Tables
from adaptssr_jax.data.rows import DataError, Rows, ignore_progress, quote_cell

# Tables for the rows of `read_columns`; `row` identifies the file and line.
DATABASE = """
create table events (row bigint, user_id varchar, item_id varchar,
  label varchar, number bigint, real double, moment bigint);
create table labels (row bigint, user_id varchar, label varchar);
"""
# A float64 represents every integer up to this one.
_EXACT = 2**53


class Users(NamedTuple):
  """Users in the order in which they first appear, with their behaviours.

  Args:
    ids: raw user ids, text [users].
    first: the row in which each user first appears, int64 [users].
    items: the behaviours of each user, oldest first, as item numbers from 1.
    item_ids: raw item ids, text [items], in the order in which they first
      appear, which is that of their numbers.
    labels: text [users]; None for pre-training.
    counts: the number of users who have behaviours, a label, and both.
  """

  ids: pa.ChunkedArray
  first: np.ndarray
  items: Ragged
  item_ids: pa.ChunkedArray
  labels: pa.ChunkedArray | None
  counts: tuple[int, int, int]

  @property
  def label_names(self) -> list[str]:
    """The distinct labels; none for pre-training."""
    return [] if self.labels is None else self.labels.unique().to_pylist()

  def rows(self, values: np.ndarray, classes: Sequence[str]) -> Rows:
    """The users as `Rows`; `values` are the item numbers of all behaviours."""
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


def sort_key(found: Sequence[tuple], events: Tables) -> str:
  """SQL of the key that sorts the behaviours of a user by time.

  Args:
    found: the results of `first_times` for all parts of the behaviours.
    events: the source of these, for messages.

  Raises:
    DataError: there are no behaviours, or not all times can be compared with
      each other exactly.
  """
  if not any(row is not None for rows in found for row in rows):
    raise DataError(
      f'no row of {events} meets the condition {events.columns.where!r}'
    )
  moment, other, real, large = (
    min((row for row in rows if row is not None), default=None)
    for rows in zip(*found, strict=True)
  )
  if moment is not None and other is not None:
    first, second = sorted([moment, other])
    kind = 'timestamp' if first == moment else 'number'
    raise DataError(
      f'{events.location(second)}: the time is not a {kind}, as it is in '
      f'{events.location(first)}; all times must be of one kind'
    )
  if real is not None and large is not None:
    raise DataError(
      f'{events.location(large[0])}: time {large[1]} is an integer that would '
      f'be rounded, because the time in {events.location(real)} is not an '
      'integer; write all times as integers or as timestamps'
    )
  if moment is not None:
    return 'moment'
  return 'number' if real is None else 'coalesce(real, number::double)'


def class_names(names: Collection[str]) -> list[str]:
  """Sorts distinct labels, by value if all are integers.

  Example:
    >>> class_names(['10', '9']), class_names(['10', '9', 'x'])
    (['9', '10'], ['10', '9', 'x'])
  """
  integers = all(re.fullmatch('[+-]?[0-9]+', name) for name in names)
  return sorted(names, key=lambda name: (int(name) if integers else 0, name))


def notes_of(counts: Iterable[tuple[int, int, int]]) -> list[str]:
  """Notes on users that a task leaves out, from the `Users.counts` of parts.

  Example:
    >>> notes_of([(3, 2, 1), (4, 4, 4)])
    ['users without behaviours are left out, 1 of 6 with a label', \
'users without a label are left out, 2 of 7 with behaviours']
  """
  users, labelled, both = np.sum([(0, 0, 0), *counts], axis=0)
  notes = []
  if labelled > both:
    notes.append(
      f'users without behaviours are left out, {labelled - both:,} of '
      f'{labelled:,} with a label'
    )
  if users > both:
    notes.append(
      f'users without a label are left out, {users - both:,} of {users:,} with '
      'behaviours'
    )
  return notes


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
    database: a database whose tables `events` and `labels` are filled.
    events: the source of `events`, for messages.
    labels: the source of `labels`; equal to `events` if labels are a column of
      it; None for pre-training.
    time_order: the result of `sort_key`.
    on_progress: called with each line of progress.

  Returns:
    The users; for a task, those with a label.

  Raises:
    DataError: a user has different labels.
  """
  database.execute(
    'create table items as select item_id, row_number() over (order by '
    'min(row)) as item_number from events group by item_id'
  )
  database.execute(
    'create table users as select user_id, min(row) as first, count(*) as size '
    'from events group by user_id'
  )
  users = labelled = _count(database, 'users')
  if labels is not None:
    _label_users(database, 'events' if labels == events else 'labels', labels)
    labelled = _count(database, 'labelled')
    database.execute(
      'create or replace table users as from users join labelled using '
      '(user_id)'
    )
  found = database.sql('from users order by first').to_arrow_table()
  sizes = found['size'].to_numpy()
  on_progress(f'Sorting {sizes.sum():,} behaviours of {len(sizes):,} users...')
  # Not as lists: DuckDB can sort on disk, but builds lists in memory.
  items = database.sql(
    'select item_number::integer as item from events join users using '
    f'(user_id) join items using (item_id) order by first, {time_order}, row'
  ).to_arrow_table()['item']
  item_ids = database.sql('select item_id from items order by item_number')
  return Users(
    found['user_id'],
    found['first'].to_numpy(),
    Ragged.from_lengths(items.to_numpy(), sizes),
    item_ids.to_arrow_table()['item_id'],
    None if labels is None else found['label'],
    (users, labelled, len(sizes)),
  )


def _count(database: duckdb.DuckDBPyConnection, name: str) -> int:
  ((count,),) = database.execute(f'select count(*) from {name}').fetchall()
  return count


def _label_users(
  database: duckdb.DuckDBPyConnection, name: str, labels: Tables
) -> None:
  """Creates the view `labelled` of users with their only label."""
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
      f'user {quote_cell(user)} has the {labels.columns.texts["label"]} '
      f'{quote_cell(before)} in {labels.location(first)} and '
      f'{quote_cell(label)} in {labels.location(row)}; a user has one label'
    )
  database.execute(
    'create view labelled as select user_id, label from of_users '
    "where label <> ''"
  )
