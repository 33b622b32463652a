"""Tables of users as an Apache Beam pipeline.

Byte ranges of text and row groups of Parquet are read on any worker. The rows
of the users of a bucket are then grouped and sorted on one, in a database of
their own, as without Beam the rows of all users are.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from apache_beam.pvalue import AsSingleton, PBegin, PCollection, TaggedOutput

from adaptssr_jax.data import pipeline
from adaptssr_jax.data.dealing import blocks, deal_out
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.table_files import text_blocks
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
from adaptssr_jax.data.readers.table_users import group_users
from adaptssr_jax.data.readers.tables import Part, is_parquet, read_columns
from adaptssr_jax.data.rows import Rows, tell_nobody

# Bytes of a part of a text file: some seconds of work.
_PART = 1 << 26
_DATABASE = """
create table events (row bigint, user_id varchar, item_id varchar,
  label varchar, number bigint, real double, moment bigint);
create table labels (row bigint, user_id varchar, label varchar);
"""
# A file, by whether it has labels alone, and its number; and a part of it.
_File = tuple[bool, int]
_Place = tuple[_File, Part]


class Source(NamedTuple):
  """The tables; those of labels may be those of events, or None."""

  events: Tables
  labels: Tables | None


def user_examples(
  begin: beam.Pipeline, tables: Source, *, folder: pathlib.Path, **split: Any
) -> dict[str, PCollection]:
  """The examples of each split, keyed by their place in it.

  Args:
    tables: of behaviours and labels.
    folder: for errors, and for items and labels as JSON.
    **split: arguments of `dealing.deal_out`.
  """
  read = begin | 'tables' >> _read_tables(tables, folder)
  moments = (
    read.times
    | 'first rows' >> beam.CombinePerKey(min)
    | 'all first rows' >> beam.combiners.ToDict()
    | 'moments'
    >> pipeline.each(functools.partial(_moments, source=tables), folder)
  )
  group = pipeline.each(
    functools.partial(_group, source=tables), folder, AsSingleton(moments)
  )
  users = (
    {'events': read.events, 'labels': read.labels}
    | 'user' >> beam.CoGroupByKey()
    | 'group' >> group.with_outputs('users', 'order', 'ids', 'items', 'classes')
  )
  items, names = read.items | 'items' >> pipeline.number_in_order()
  _ = names | 'save items' >> pipeline.save(folder / 'items.json')
  order, _ = users.order | 'order' >> pipeline.number_in_order()
  classes = (
    users.classes
    | 'distinct' >> beam.Distinct()
    | 'all classes' >> beam.combiners.ToList()
    | 'in order' >> beam.Map(lambda names: (0, class_names(names)))
  )
  _ = classes | 'save labels' >> pipeline.save(folder / 'labels.json')
  total = (
    users.users
    | 'count' >> beam.MapTuple(lambda bucket, users: len(users.first))
    | 'total' >> beam.CombineGlobally(sum)
    | 'any' >> pipeline.each(functools.partial(_check, source=tables), folder)
  )
  found = {
    'users': users.users,
    'order': users.ids | 'find order' >> pipeline.look_up(order),
    'items': users.items | 'find items' >> pipeline.look_up(items),
  }
  rows = (
    found
    | 'what is found' >> beam.CoGroupByKey()
    | 'rows' >> pipeline.each(_rows, folder, AsSingleton(classes))
  )
  return rows | 'deal out' >> deal_out(total=total, folder=folder, **split)


@beam.ptransform_fn
def _read_tables(begin: PBegin, tables: Source, folder: pathlib.Path) -> Any:
  """The rows of all files, and the other outputs of `_read`."""
  return (
    begin
    | 'parts' >> beam.Create(_parts(tables))
    | 'scan anywhere' >> beam.Reshuffle()
    | 'scan' >> pipeline.each(_scan, folder)
    | 'file' >> beam.GroupByKey()
    | 'count lines' >> beam.FlatMapTuple(_with_lines)
    | 'read anywhere' >> beam.Reshuffle()
    | 'read'
    >> pipeline.each(_read, folder).with_outputs(
      'events', 'labels', 'items', 'times'
    )
  )


def _parts(source: Source) -> list[_Place]:
  parts = _parts_of(source.events, of_labels=False)
  if source.labels not in (None, source.events):
    parts += _parts_of(source.labels, of_labels=True)
  return parts


def _parts_of(tables: Tables, *, of_labels: bool) -> list[_Place]:
  parts = []
  for file, path in enumerate(tables.paths):
    starts = range(0, max(path.stat().st_size, 1), _PART)
    if is_parquet(path):
      starts = _row_groups(path) or [0]
    ends = [*starts[1:], None]
    parts += [
      ((of_labels, file), Part(path, tables.columns, start, end))
      for start, end in zip(starts, ends, strict=True)
    ]
  return parts


def _row_groups(path: pathlib.Path) -> list[int]:
  """Those of a Parquet file that have rows; none if it cannot be read."""
  try:
    metadata = pyarrow.parquet.read_metadata(path)
  except pa.ArrowException:
    # Whoever reads it says what is wrong with it.
    return []
  groups = range(metadata.num_row_groups)
  return [group for group in groups if metadata.row_group(group).num_rows]


def _scan(place: _Place) -> Iterator[tuple[_File, tuple[Part, int, bool]]]:
  """The number of lines of a part, and whether its file may be cut there."""
  file, part = place
  lines, is_plain = 0, True
  if not is_parquet(part.path):
    for block in text_blocks(part.path, part.start, part.end):
      lines += block.text.count(b'\n')
      # A line break between quotation marks leaves one of them in a line.
      if b'"' in block.text and part.path.suffix.lower() == '.csv':
        counts = (line.count(b'"') for line in block.text.split(b'\n'))
        is_plain = is_plain and not any(count % 2 for count in counts)
  yield file, (part, lines, is_plain)


def _with_lines(
  file: _File, scanned: Iterable[tuple[Part, int, bool]]
) -> Iterator[_Place]:
  scanned = sorted(scanned, key=lambda part: part[0].start)
  if not all(is_plain for _, _, is_plain in scanned):
    yield file, scanned[0][0]._replace(end=None)
    return
  line = 1
  for part, lines, _ in scanned:
    yield file, part._replace(line=line)
    line += lines


def _read(place: _Place) -> Iterator[TaggedOutput]:
  (of_labels, file), part = place
  with duckdb.connect() as connection:
    tables = list(read_columns(connection, part))
  # No line may begin in a part, and none meet a condition.
  if not sum(map(len, tables)):
    return
  table = pa.concat_tables(tables)
  row = pc.add(table['line'], file * FILE)
  table = table.drop_columns('line').append_column('row', row)
  tag = 'labels' if of_labels else 'events'
  yield from pipeline.tagged(tag, table, 'user_id')
  if of_labels:
    return
  items = table['item_id'].combine_chunks().dictionary_encode()
  _, first = np.unique(items.indices.to_numpy(), return_index=True)
  items = pa.table({'id': items.dictionary, 'place': row.take(first)})
  yield from pipeline.tagged('items', items)
  is_moment, number = pc.is_valid(table['moment']), table['number']
  is_large = pc.or_(pc.greater(number, EXACT), pc.less(number, -EXACT))
  for name, rows in (
    ('moment', is_moment),
    ('other', pc.invert(is_moment)),
    ('real', pc.is_valid(table['real'])),
    ('rounded', is_large),
  ):
    at = pc.index(rows, True).as_py()
    if at >= 0:
      yield TaggedOutput('times', (name, (row[at].as_py(), number[at].as_py())))


def _moments(
  found: dict[str, tuple[int, int | None]], *, source: Source
) -> Iterator[str]:
  if not found:
    raise no_row(source.events)
  names = ('moment', 'other', 'real', 'rounded')
  times = [found.get(name, (None, None)) for name in names]
  yield sort_key(source.events, *(row for row, _ in times), times[-1][1])


def _group(
  bucket: tuple[int, dict[str, Iterable[pa.Table]]],
  moments: str,
  *,
  source: Source,
) -> Iterator[TaggedOutput]:
  number, tables = bucket
  with duckdb.connect() as database:
    database.execute(_DATABASE)
    for name, parts in tables.items():
      for part in parts:
        database.register('part', part)
        database.execute(f'insert into {name} by name from part')
    users = group_users(
      database, source.events, source.labels, moments, tell=tell_nobody
    )
  if not len(users.first):
    return
  yield TaggedOutput('users', (number, users))
  order = pa.table({'id': users.ids, 'place': users.first})
  for tag, table in (
    ('order', order),
    ('ids', pipeline.placed(users.ids, number)),
    ('items', pipeline.placed(users.item_ids, number)),
  ):
    yield from pipeline.tagged(tag, table)
  if users.labels is not None:
    for name in users.labels.unique().to_pylist():
      yield TaggedOutput('classes', name)


def _check(total: int, *, source: Source) -> Iterator[int]:
  if not total:
    raise no_label(source.events)
  yield total


def _rows(
  bucket: tuple[int, dict[str, Iterable]], classes: tuple[int, list[str]]
) -> Iterator[tuple[int, tuple]]:
  _, found = bucket
  for users in found['users']:
    numbers = pipeline.array_of(found['items'], len(users.item_ids))
    values = numbers[users.items.values - 1].astype(np.int32)
    rows = Rows(users.ids.to_pylist(), Ragged(values, users.items.offsets))
    if users.labels is not None:
      rows = rows._replace(label=class_numbers(users.labels, classes[1]))
    order = pipeline.array_of(found['order'], len(users.first))
    yield from blocks(rows, order - 1)
