"""Your own users, from tables of behaviours and of labels.

A table of events, in one or several CSV, Parquet or JSON-lines files, has a
user id, an item id and a time in each row; CSV and JSON lines may be
compressed. The labels are a column of this table, or a table of their own with
a user id and a label in each row.

Users and items are numbered in the order in which they first appear, file by
file and row by row, and their ids are kept as text. The behaviours of a user
are sorted by time, those of the same time in the order of their rows. Classes
are the distinct labels in sorted order, by value if all are integers.
Pre-training uses all users, 90% of them for training; a task uses the users
with a label, 60% for training, 20% for validation and 20% for the test.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.readers.table_sql import check_time_format, columns_of
from adaptssr_jax.data.readers.table_users import read_users
from adaptssr_jax.data.readers.tables import Columns, Tables, check_path
from adaptssr_jax.data.rows import (
  DataError,
  Rows,
  Vocabulary,
  split_for,
  split_rows,
)

_LONGEST_NAME = 50


@dataclasses.dataclass(eq=False)
class UserTablesConfig(TaskConfig):
  """The files of a data set; created by `user_tables_config`.

  Args:
    events: files of behaviours, and the columns to read.
    labels: files of labels, and the columns to read; equal to `events` if
      labels are a column of the events; None for pre-training.
    memory_limit: of the DuckDB that sorts their rows; it changes no example.
  """

  events: Tables | None = None
  labels: Tables | None = None
  memory_limit: str = ''

  @property
  def source(self) -> str:
    """The distinct files, for messages."""
    paths = [*self.events.paths, *(self.labels.paths if self.labels else [])]
    return ', '.join(dict.fromkeys(map(str, paths)))


def user_tables_config(
  *,
  events: str | Sequence[str],
  labels: str | None = None,
  user_column: str = 'user_id',
  item_column: str = 'item_id',
  time_column: str = 'time',
  label_column: str | None = None,
  time_format: str = '',
  where: str = '',
  memory_limit: str = '',
) -> UserTablesConfig:
  """Describes a data set of your own tables: files, columns and formats.

  The name of the config, and so of the prepared folder, consists of the task
  and a hash of the columns and the contents of the files. A changed file is
  prepared again; a file that was only moved is not.

  Args:
    events: files of behaviours: one path, several paths separated by commas, or
      a sequence; `*` and `?` match parts of a name. Files are read in this
      order.
    labels: file of labels; None if labels are a column of the events. An empty
      label is a user without a label, in either.
    user_column: name of the column of user ids, in both tables.
    item_column: name of the column of item ids.
    time_column: name of the column of times.
    label_column: name of the column of labels; None for pre-training.
    time_format: the `strptime` format of the times, such as '%m/%d/%Y'; by
      default they are numbers or ISO-8601 timestamps.
    where: a condition in SQL on the columns of the events; other rows are left
      out. Columns of CSV and JSON lines are text.
    memory_limit: of the DuckDB that sorts the rows, such as '4GB'; by default
      80% of the machine's memory. The rest goes to the disk.

  Returns:
    The config for `tfds.builder('user_tables', config=..., data_dir=...)`.

  Raises:
    DataError: a file does not exist, two columns are the same, or the format or
      the condition is invalid.
  """
  label = {'label': label_column} if label_column else {}
  users = {'user_id': user_column}
  own_labels = pathlib.Path(labels) if label and labels else None
  columns = Columns(
    users | {'item_id': item_column} | ({} if own_labels else label),
    time_column,
    time_format=time_format,
    where=where,
  )
  named = [user_column, item_column, time_column, *label.values()]
  if len(set(named)) < len(named):
    raise DataError(
      f'the columns {", ".join(named)} must be different: they are user, item, '
      'time and, for a task, label'
    )
  check_time_format(time_format)
  columns_of(where)
  tables = Tables(_find_files(events), columns)
  key = [named, [_fingerprint(path) for path in tables.paths]]
  key += [own_labels and _fingerprint(own_labels)]
  # Data sets prepared before these two settings existed keep their names.
  key += [[time_format, where]] if time_format or where else []
  of_labels = tables if label else None
  if own_labels:
    of_labels = Tables([own_labels], Columns(users | label))
  task = label_column or 'pretrain'
  return UserTablesConfig(
    name=_name(task, key),
    task=task,
    kind='classification' if label else 'pretrain',
    events=tables,
    labels=of_labels,
    memory_limit=memory_limit,
  )


def _find_files(events: str | Sequence[str]) -> list[pathlib.Path]:
  patterns = events.split(',') if isinstance(events, str) else events
  paths = []
  for pattern in patterns:
    # An existing file may have a bracket in its name; '' would be a folder.
    exists = pattern and pathlib.Path(pattern).exists()
    found = [pattern] if exists else sorted(glob.glob(pattern))
    if not found:
      # A run that is resumed elsewhere may have been given a relative path.
      absolute = pathlib.Path(pattern).is_absolute()
      where = '' if absolute else f' in the folder {pathlib.Path.cwd()}'
      raise DataError(
        f'there is no file {pattern!r}{where}; give the path of events'
      )
    paths += found
  if not paths:
    raise DataError('there are no files of events; give at least one path')
  return [pathlib.Path(path) for path in paths]


def _name(task: str, key: list[Any]) -> str:
  digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8)
  # This becomes the name of a folder, whose length is limited.
  readable = re.sub('[^0-9A-Za-z]+', '_', task)[:_LONGEST_NAME]
  return f'{readable}_{digest.hexdigest()}'


def _fingerprint(path: pathlib.Path) -> list[str]:
  check_path(path)
  try:
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'blake2b').hexdigest()
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror}') from None
  return [path.suffix, digest]


class UserTables(UserBuilder):
  """Users from tables of behaviours and labels."""

  def _info(self) -> tfds.core.DatasetInfo:
    if not isinstance(self.builder_config, UserTablesConfig):
      raise DataError(
        'user_tables needs its files: pass '
        'config=user_tables_config(events=...)'
      )
    return super()._info()

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    del dl_manager
    config = self.builder_config
    self.info.metadata['source'] = config.source
    rows, vocabulary, notes = read_users(
      config.events,
      config.labels,
      pathlib.Path(self.data_dir_root),
      memory_limit=config.memory_limit,
      on_progress=self.on_progress,
    )
    self.info.metadata['notes'] = notes
    return split_rows(rows, config.task), vocabulary

  def _examples(
    self,
    dl_manager: tfds.download.DownloadManager,
    pipeline: Any,
    folder: pathlib.Path,
  ) -> dict[str, Any]:
    # Apache Beam need not be installed.
    from adaptssr_jax.data.readers.table_beam import user_examples

    del dl_manager
    config = self.builder_config
    self.info.metadata['source'] = config.source
    return user_examples(
      pipeline,
      config.events,
      config.labels,
      folder=folder,
      split=functools.partial(split_for, config.task),
      source=config.source,
    )
