"""Your own users, from tables of behaviours and of labels.

A table of events, in one or several CSV, Parquet or JSON-lines files, has a
user id, an item id and a time in each row. The labels stand in a column of it,
or in a table of their own with a user id and a label in each row.

Users and items are numbered in the order they first appear, file by file and
row by row, and their ids are kept as text. A user's behaviours are put in order
of time, those of the same time in the order of their rows. Classes are the
distinct labels in sorted order, by value if all are integers. Pre-training uses
all users, 90% to train; a task uses those with a label, 60% to train, 20% to
validate and 20% to test.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.readers.table_rows import Columns
from adaptssr_jax.data.readers.table_users import (
  labelled_rows,
  labels_of,
  read_users,
)
from adaptssr_jax.data.readers.tables import check_path, read_table
from adaptssr_jax.data.rows import (
  DataError,
  Rows,
  Vocabulary,
  split_for_pretraining,
  split_for_task,
)

_LONGEST_NAME = 50


class Source(NamedTuple):
  """The tables and their columns, as in `UserTablesConfig`.

  Args:
    events: the files of behaviours.
    labels: the file of labels; None if they stand in the events, or nowhere.
    user: name of the column of user ids.
    item: of item ids.
    time: of times.
    label: of labels; None for pre-training.
  """

  events: tuple[str, ...]
  labels: str | None
  user: str
  item: str
  time: str
  label: str | None

  def columns(self, *, of_labels: bool = False) -> Columns:
    """The columns read of the events, or of the table of labels."""
    if of_labels:
      return Columns((self.user, self.label))
    in_events = self.label is not None and self.labels is None
    texts = (self.user, self.item, *([self.label] if in_events else []))
    return Columns(texts, self.time)


@dataclasses.dataclass(eq=False)
class UserTablesConfig(TaskConfig):
  """Which files and columns; made by `user_tables_config`.

  Args:
    events: the files of behaviours.
    labels: the file of labels; None if they stand in the events.
    user_column: name of the column of user ids, in either table.
    item_column: name of that of item ids.
    time_column: name of that of times.
    label_column: name of that of labels; None for pre-training.
  """

  events: tuple[str, ...] = ()
  labels: str | None = None
  user_column: str = 'user_id'
  item_column: str = 'item_id'
  time_column: str = 'time'
  label_column: str | None = None


def user_tables_config(
  *,
  events: str | Sequence[str],
  labels: str | None = None,
  user_column: str = 'user_id',
  item_column: str = 'item_id',
  time_column: str = 'time',
  label_column: str | None = None,
  task: str | None = None,
) -> UserTablesConfig:
  """Says which files and columns a data set is made from.

  Its name, and so the folder it is prepared in, is the task and a hash of the
  columns and of all that is in the files: a file that has changed is never
  taken for the one that was prepared, and one that only moved need not be
  prepared again.

  Args:
    events: files of behaviours: one path, several with commas between, or a
      sequence; `*` and `?` stand for any part of a name. Rows count in the
      order of the files.
    labels: file of labels; None if they stand in the events.
    user_column: name of the column of user ids, in either table.
    item_column: name of that of item ids.
    time_column: name of that of times.
    label_column: name of that of labels.
    task: 'pretrain' or the label column; by default the latter, if given.

  Returns:
    The config for `tfds.builder('user_tables', config=..., data_dir=...)`.

  Raises:
    DataError: a file is not there, or the columns contradict each other.
  """
  task = task or label_column or 'pretrain'
  if task == 'pretrain':
    labels = label_column = None
  elif task != (label_column or task):
    raise DataError(
      f"task {task!r} is neither 'pretrain' nor the label column "
      f'{label_column!r}'
    )
  columns = [user_column, item_column, time_column]
  columns += [] if task == 'pretrain' else [task]
  if len(set(columns)) < len(columns):
    raise DataError(
      f'the columns {", ".join(columns)} must be different ones: user, item, '
      'time and, for a task, label'
    )
  paths = _find_files(events)
  return UserTablesConfig(
    name=_name(task, columns, paths, labels),
    description=f'{task}, from {", ".join([*paths, *filter(None, [labels])])}',
    task=task,
    kind='pretrain' if task == 'pretrain' else 'classification',
    events=tuple(paths),
    labels=labels,
    user_column=user_column,
    item_column=item_column,
    time_column=time_column,
    label_column=None if task == 'pretrain' else task,
  )


def _find_files(events: str | Sequence[str]) -> list[str]:
  patterns = events.split(',') if isinstance(events, str) else events
  paths = []
  for pattern in patterns:
    # A name with a bracket in it is a name first, and a pattern second.
    exists = pathlib.Path(pattern).exists()
    found = [pattern] if exists else sorted(glob.glob(pattern))
    if not found:
      raise DataError(f'there is no file {pattern!r}; give the path of events')
    paths += found
  if not paths:
    raise DataError('there are no files of events; give at least one path')
  return paths


def _name(
  task: str, columns: list[str], events: list[str], labels: str | None
) -> str:
  key = [
    columns,
    [_fingerprint(path) for path in events],
    labels and _fingerprint(labels),
  ]
  digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8)
  # It becomes the name of a folder, which may not be of any length.
  readable = re.sub('[^0-9A-Za-z]+', '_', task)[:_LONGEST_NAME]
  return f'{readable}_{digest.hexdigest()}'


def _fingerprint(path: str) -> list[str]:
  check_path(pathlib.Path(path))
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'blake2b').hexdigest()
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror}') from None
  return [pathlib.Path(path).suffix, digest]


class UserTables(UserBuilder):
  """Users from tables of behaviours and labels."""

  def _info(self) -> tfds.core.DatasetInfo:
    if not isinstance(self.builder_config, UserTablesConfig):
      raise DataError(
        'user_tables has to know its files: pass '
        'config=user_tables_config(events=...)'
      )
    return super()._info()

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    del dl_manager
    source = self._source()
    columns = source.columns()
    events = [read_table(pathlib.Path(path), columns) for path in source.events]
    users = read_users(
      events, user=source.user, item=source.item, time=source.time
    )
    item_ids = users.item_ids.to_pylist()
    if source.label is None:
      rows = Rows(users.ids.to_pylist(), users.items)
      return split_for_pretraining(rows), Vocabulary(item_ids)

    tables = events
    if source.labels is not None:
      columns = source.columns(of_labels=True)
      tables = [read_table(pathlib.Path(source.labels), columns)]
    labels = labels_of(
      tables,
      users.ids,
      user=source.user,
      label=source.label,
      required=source.labels is not None,
    )
    rows, classes = labelled_rows(users, labels, source.events)
    return split_for_task(rows), Vocabulary(item_ids, classes)

  def _source(self) -> Source:
    """The tables, which are also told in the data set's own description."""
    config = self.builder_config
    self.info.metadata['source'] = ', '.join(
      [*config.events, *filter(None, [config.labels])]
    )
    return Source(
      config.events,
      config.labels,
      user=config.user_column,
      item=config.item_column,
      time=config.time_column,
      label=config.label_column,
    )
