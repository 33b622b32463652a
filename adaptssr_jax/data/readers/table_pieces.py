"""Tables of users with Beam: files are read, and users put together, anywhere.

Each file is read whole by one worker, which deals its rows out to buckets by
user. A bucket then has all rows of its users, wherever they stood. Which
numbers the items and the users get is only known when all are through. The rows
of a file stay in one file, however many buckets there are: each is a batch of
it, found without reading the others.
"""

from __future__ import annotations

import functools
import json
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet

from adaptssr_jax.data.pieces import (
  Pieces,
  appearing,
  load,
  load_rows,
  save,
  save_rows,
)
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.table_rows import Columns
from adaptssr_jax.data.readers.table_users import (
  Users,
  check_exact,
  check_filled,
  check_kinds,
  class_names,
  encode,
  labels_of,
  no_label,
  read_users,
  rounded,
  times_of,
)
from adaptssr_jax.data.readers.tables import TEXT, Table, read_table
from adaptssr_jax.data.rows import Rows, Vocabulary

# Buckets for each file: users of a bucket are put together in memory.
_BUCKETS = 4
# Rows are counted on in the next file from here: no file has as many.
_FILE = 1 << 40


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


def group_users(
  source: Source,
  *,
  split: Callable[[int], dict[str, np.ndarray]],
  run: Callable[..., None],
  folder: pathlib.Path,
) -> Pieces:
  """Makes the pieces of a data set.

  Args:
    source: the tables.
    split: which of so many users go to each split.
    run: calls a function with each of several arguments, on any machine:
      `run(function, arguments, folder)`.
    folder: for the pieces.

  Returns:
    The pieces.

  Raises:
    DataError: a row is wrong; the message has the file, the line and why.
  """
  files = [*source.events, *filter(None, [source.labels])]
  buckets = range(_BUCKETS * len(files))
  place = {'source': source, 'folder': folder}
  deal = functools.partial(_deal_out, buckets=len(buckets), **place)
  run(deal, range(len(files)), folder / 'dealt')
  told = [
    _read_json(folder / f'told-{number}')
    for number in range(len(source.events))
  ]
  check_kinds(source.events, [tell['kind'] for tell in told], source.time)
  item_ids = _join_items(source, folder)
  floats = any(tell['type'] == 'float64' for tell in told)
  if floats:
    check_exact(tell['rounded'] for tell in told)
  run(
    functools.partial(_group, floats=floats, **place),
    buckets,
    folder / 'grouped',
  )
  first, names = [], set()
  for bucket in buckets:
    first.append(load(folder / f'group-{bucket}.npz', 'numbers')['numbers'])
    names |= set(_read_json(folder / f'names-{bucket}'))
  first = np.sort(np.concatenate(first))
  if source.label is not None and not len(first):
    raise no_label(source.events)
  save(folder / 'first.npz', first=first)
  classes = class_names(names)
  finish = functools.partial(_finish, classes=classes, folder=folder)
  run(finish, buckets, folder / 'finished')
  paths = [str(folder / f'rows-{bucket}.npz') for bucket in buckets]
  return Pieces(paths, split(len(first)), Vocabulary(item_ids, classes))


def _deal_out(
  number: int, *, source: Source, folder: pathlib.Path, buckets: int
) -> None:
  """Reads a file and writes its rows, those of a bucket of users together."""
  of_labels = number == len(source.events)
  path = source.labels if of_labels else source.events[number]
  columns = source.columns(of_labels=of_labels)
  table = read_table(pathlib.Path(path), columns)
  for name in columns.texts:
    if name != source.label or of_labels:
      check_filled(table, name)
  if not of_labels:
    check_filled(table, source.time)
    times = times_of(table, source.time)
    told = {
      'kind': times.kind,
      'type': str(times.values.dtype),
      'rounded': rounded(table, times),
    }
    _write_json(folder / f'told-{number}', told)
    table.cells[source.time] = pa.chunked_array([pa.array(times.values)])
    _, distinct = encode([table], source.item)
    _write(folder / f'items-{number}', [distinct])
  codes, ids = encode([table], source.user)
  hashes = [zlib.crc32(user.encode()) % buckets for user in ids.to_pylist()]
  bucket = np.array(hashes)[codes]
  rows = np.argsort(bucket, kind='stable')
  ends = np.cumsum(np.bincount(bucket, minlength=buckets))
  taken = [table.cells[name].take(pa.array(rows)) for name in columns.names]
  _write_batches(folder / f'part-{number}', [pa.array(rows), *taken], ends)


def _group(
  bucket: int, *, source: Source, folder: pathlib.Path, floats: bool
) -> None:
  """Puts the users of a bucket together; those of a task have a label."""
  parts = [
    _part(bucket, number, source, folder, floats)
    for number in range(len(source.events))
  ]
  events = [part for part in parts if len(part)]
  users = Users(pa.array([], TEXT), Ragged.from_rows([]), pa.array([], TEXT))
  numbers, names = np.zeros(0, int), []
  if events:
    users = read_users(
      events, user=source.user, item=source.item, time=source.time
    )
    every = pc.index_in(users.item_ids, value_set=_read(folder / 'items')[0])
    every = every.to_numpy().astype(np.int32) + np.int32(1)
    users = users._replace(
      items=Ragged(every[users.items.values - 1], users.items.offsets)
    )
    codes, _ = encode(events, source.user)
    place = [at * _FILE + part.rows for at, part in enumerate(parts)]
    numbers = np.concatenate(place)[np.unique(codes, return_index=True)[1]]
  rows = Rows(users.ids.to_pylist(), users.items)
  if source.label is not None:
    tables = events
    if source.labels is not None:
      # Of all its users, those without events, too: they may be wrong.
      tables = [_part(bucket, len(parts), source, folder, floats)]
    rows, kept, names = _labelled(users, tables, source)
    numbers = numbers[kept]
  save_rows(folder / f'group-{bucket}.npz', rows, numbers)
  _write_json(folder / f'names-{bucket}', names)


def _labelled(
  users: Users, tables: list[Table], source: Source
) -> tuple[Rows, np.ndarray, list[str]]:
  """The users with a label, which they are, and the names of the labels."""
  labels = pa.nulls(len(users.ids), TEXT)
  if any(len(table) for table in tables):
    labels = labels_of(
      tables,
      users.ids,
      user=source.user,
      label=source.label,
      required=source.labels is not None,
    )
  kept = np.flatnonzero(labels.is_valid().to_numpy(zero_copy_only=False))
  encoded = labels.take(pa.array(kept)).dictionary_encode()
  rows = Rows(users.ids.to_pylist(), users.items).take(kept)
  codes = encoded.indices.to_numpy()
  return rows._replace(label=codes), kept, encoded.dictionary.to_pylist()


def _finish(bucket: int, *, classes: list[str], folder: pathlib.Path) -> None:
  """Numbers the users of a bucket, and their labels, as among all."""
  rows, numbers = load_rows(folder / f'group-{bucket}.npz')
  if rows.label is not None:
    names = _read_json(folder / f'names-{bucket}')
    number = {name: place for place, name in enumerate(classes)}
    own = np.array([number[name] for name in names], np.int32)
    rows = rows._replace(label=own[rows.label])
  first = load(folder / 'first.npz')['first']
  save_rows(
    folder / f'rows-{bucket}.npz', rows, np.searchsorted(first, numbers)
  )


def _part(
  bucket: int,
  number: int,
  source: Source,
  folder: pathlib.Path,
  floats: bool,
) -> Table:
  """The rows of a bucket in one file."""
  rows, *cells = _read_batch(folder / f'part-{number}', bucket)
  of_labels = number == len(source.events)
  path = source.labels if of_labels else source.events[number]
  columns = source.columns(of_labels=of_labels)
  if floats and not of_labels:
    # As numpy does it where columns of both types are joined.
    cells[-1] = pa.chunked_array([pa.array(cells[-1].to_numpy().astype(float))])
  named = dict(zip(columns.names, cells, strict=True))
  return Table(pathlib.Path(path), columns, named, rows.to_numpy())


def _join_items(source: Source, folder: pathlib.Path) -> list[str]:
  """Numbers the items of all files in the order they first appear."""
  parts = [
    _read(folder / f'items-{number}')[0] for number in range(len(source.events))
  ]
  chunks = [chunk for part in parts for chunk in part.chunks]
  distinct = pa.chunked_array(chunks, TEXT).unique()
  _write(folder / 'items', [distinct])
  return distinct.to_pylist()


def _write_json(path: pathlib.Path, content: Any) -> None:
  with appearing(path) as aside:
    aside.write_text(json.dumps(content))


def _read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_text())


def _write(
  path: pathlib.Path, columns: Sequence[pa.Array | pa.ChunkedArray]
) -> None:
  names = [str(place) for place in range(len(columns))]
  table = pa.table(dict(zip(names, columns, strict=True)))
  with appearing(path) as aside:
    pyarrow.parquet.write_table(table, aside)


def _read(path: pathlib.Path) -> list[pa.ChunkedArray]:
  return pyarrow.parquet.read_table(path).columns


def _write_batches(
  path: pathlib.Path,
  columns: Sequence[pa.Array | pa.ChunkedArray],
  ends: np.ndarray,
) -> None:
  """Writes rows as batches, of which each ends before one of these rows."""
  names = [str(place) for place in range(len(columns))]
  table = pa.table(dict(zip(names, columns, strict=True)))
  with (
    appearing(path) as aside,
    pyarrow.ipc.new_file(aside, table.schema) as file,
  ):
    for start, end in zip([0, *ends], ends, strict=False):
      rows = table.slice(start, end - start).columns
      cells = [column.combine_chunks() for column in rows]
      file.write_batch(pa.record_batch(cells, names))


def _read_batch(path: pathlib.Path, number: int) -> list[pa.ChunkedArray]:
  with pa.memory_map(str(path)) as file:
    batch = pyarrow.ipc.open_file(file).get_batch(number)
    return [pa.chunked_array([column]) for column in batch.columns]
