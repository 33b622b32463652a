"""Prepares `user_tables` as an Apache Beam pipeline.

Any worker reads byte ranges of text and row groups of Parquet. Users are then
divided into buckets, and one worker groups and sorts the rows of a bucket in a
database, in the way in which all rows are processed without Beam.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput

from adaptssr_jax.data.readers import pipeline, table_groups, table_users
from adaptssr_jax.data.readers.lines import Span
from adaptssr_jax.data.readers.table_groups import Users
from adaptssr_jax.data.readers.tables import FILE, Tables, read_columns
from adaptssr_jax.data.rows import Rows


def user_examples(
  begin: beam.Pipeline,
  events: Tables,
  labels: Tables | None,
  *,
  folder: pathlib.Path,
  **split: Any,
) -> dict[str, PCollection]:
  """The examples of each split, keyed by their row in the split.

  Args:
    labels: the labels, equal to `events` if they are a column of it; None for
      pre-training.
    folder: for errors, and for items, labels and notes as JSON.
    **split: arguments of `pipeline.split_examples`.
  """
  both = {'events': events, 'labels': labels}
  files = {('events', at): path for at, path in enumerate(events.paths)}
  if labels not in (None, events):
    files |= {('labels', at): path for at, path in enumerate(labels.paths)}
  read = beam.FlatMap(pipeline.guarded, _read, folder, both)
  outputs = ('events', 'labels', 'items', 'times')
  spans = begin | 'spans' >> pipeline.spans_of(files, folder)
  read = spans | 'read' >> read.with_outputs(*outputs)
  time_order = (
    read.times
    | 'all times' >> beam.combiners.ToList()
    | 'time order'
    >> beam.Map(pipeline.guarded, table_groups.sort_key, folder, events)
  )
  users = (
    {'events': read.events, 'labels': read.labels}
    | 'user' >> beam.CoGroupByKey()
    | 'group'
    >> beam.FlatMap(
      pipeline.guarded, _group, folder, AsSingleton(time_order), events, labels
    )
  )
  _ = users | 'notes' >> _save_notes(folder)
  users |= 'any' >> beam.Filter(lambda users: len(users.first) > 0)
  items = read.items | 'items' >> pipeline.in_order()
  _ = items | 'save items' >> pipeline.save(folder / 'items.json')
  classes = (
    users
    | 'classes' >> beam.FlatMap(lambda users: users.label_names)
    | 'all classes' >> beam.combiners.ToSet()
    | 'in order' >> beam.Map(table_groups.class_names)
  )
  _ = classes | 'save labels' >> pipeline.save(folder / 'labels.json')
  # A user is identified by the row in which it first appears.
  order = (
    users
    | 'first' >> beam.Map(lambda users: users.first)
    | 'all first' >> beam.combiners.ToList()
    | 'order' >> beam.Map(pipeline.guarded, _order, folder, events)
  )
  rows = users | 'rows' >> beam.FlatMap(
    _rows, AsSingleton(order), AsSingleton(items), AsSingleton(classes)
  )
  return rows | 'split' >> pipeline.split_examples(
    total=order | 'total' >> beam.Map(len), folder=folder, **split
  )


def _read(
  element: tuple[tuple[str, int], Span], tables: dict[str, Tables]
) -> list[TaggedOutput]:
  (name, file), span = element
  found = list(read_columns(span, tables[name].columns))
  # No line may begin in the span, or none may meet the condition.
  if not sum(map(len, found)):
    return []
  table = pa.concat_tables(found)
  row = pc.add(table.column('line'), file * FILE)
  table = table.set_column(0, 'line', row)
  buckets = pipeline.buckets(table, 'user_id')
  outputs = [TaggedOutput(name, bucket) for bucket in buckets]
  if name == 'events':
    items = pa.table({'id': table['item_id'], 'position': row})
    outputs.append(TaggedOutput('items', pipeline.first_positions([items])))
    with duckdb.connect() as connection:
      connection.register('part', table.rename_columns({'line': 'row'}))
      times = table_groups.first_times(connection, 'part')
    outputs.append(TaggedOutput('times', times))
  return outputs


def _group(
  bucket: tuple[int, dict[str, Iterable[pa.Table]]],
  time_order: str,
  events: Tables,
  labels: Tables | None,
) -> list[Users]:
  _, tables = bucket
  with duckdb.connect() as database:
    database.execute(table_groups.DATABASE)
    for name, parts in tables.items():
      for part in parts:
        table_users.insert(database, name, part)
    return [table_groups.group_users(database, events, labels, time_order)]


@beam.ptransform_fn
def _save_notes(users: PCollection, folder: pathlib.Path) -> PCollection:
  return (
    users
    | 'counts' >> beam.Map(lambda users: users.counts)
    | 'all counts' >> beam.combiners.ToList()
    | 'join' >> beam.Map(table_groups.notes_of)
    | 'save' >> pipeline.save(folder / 'notes.json')
  )


def _order(first: list[np.ndarray], events: Tables) -> np.ndarray:
  order = np.sort(np.concatenate([np.zeros(0, np.int64), *first]))
  table_users.check_any_user(events, len(order))
  return order


def _rows(
  users: Users, order: np.ndarray, items: pa.Array, classes: list[str]
) -> Iterator[tuple[np.ndarray, Rows]]:
  known = items.cast(users.item_ids.type)
  number = pc.index_in(users.item_ids, value_set=known).to_numpy() + 1
  rows = users.rows(number[users.items.values - 1], classes)
  yield np.searchsorted(order, users.first), rows
