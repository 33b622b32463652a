"""Prepares the TTL data set as an Apache Beam pipeline."""

from __future__ import annotations

import pathlib
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, PBegin, PCollection

from adaptssr_jax.data.readers import pipeline
from adaptssr_jax.data.readers.ttl_lines import (
  Lines,
  last_lines,
  notes_of,
  read_lines,
  rows_of,
  users_of,
)
from adaptssr_jax.data.rows import Kind, Rows


def ttl_examples(
  begin: beam.Pipeline,
  pretrain: pathlib.Path,
  task: pathlib.Path | None,
  *,
  kind: Kind,
  folder: pathlib.Path,
  **split: Any,
) -> dict[str, PCollection]:
  """The examples of each split, keyed by their row in the split.

  Args:
    pretrain: the pre-training file.
    task: the file of a task; None for pre-training itself.
    kind: the kind of the lines of the task.
    folder: for errors, and for items, labels and notes as JSON.
    **split: arguments of `pipeline.split_examples`.
  """
  lines = begin | 'lines' >> _read(pretrain, 'pretrain', folder)
  items = lines | 'items' >> _ids('item_ids')
  _ = items | 'save items' >> pipeline.save(folder / 'items.json')
  users, every, tails = None, [lines], None
  if task is not None:
    users = AsSingleton(
      lines
      | 'users'
      >> beam.Map(pipeline.guarded, users_of, folder, AsSingleton(items))
      | 'last lines' >> beam.CombineGlobally(last_lines)
    )
    lines = begin | 'lines of the task' >> _read(task, kind, folder)
    every.append(lines)
    tails = lines | 'tails' >> _ids('tail_ids')
    _ = tails | 'save labels' >> pipeline.save(folder / 'labels.json')
    tails = AsSingleton(tails)
  _ = (
    tuple(every)
    | beam.Flatten()
    | 'dropped' >> beam.Map(lambda of: (str(of.span.path), of.dropped))
    | 'all dropped' >> beam.combiners.ToList()
    | 'notes' >> beam.Map(notes_of)
    | 'save notes' >> pipeline.save(folder / 'notes.json')
  )
  counts = (
    lines
    | 'count' >> beam.Map(lambda of: (of.span.start, of.num_rows))
    | 'all counts' >> beam.combiners.ToList()
  )
  sides = AsSingleton(counts), AsSingleton(items), users, tails
  rows = lines | 'rows' >> beam.Map(pipeline.guarded, _rows, folder, *sides)
  total = counts | 'total' >> beam.Map(
    lambda counts: sum(count for _, count in counts)
  )
  return rows | 'split' >> pipeline.split_examples(
    total=total, folder=folder, **split
  )


@beam.ptransform_fn
def _read(
  begin: PBegin, path: pathlib.Path, kind: Kind, folder: pathlib.Path
) -> PCollection:
  """The lines of a file, with one element per span."""
  return (
    begin
    | pipeline.spans_of({path.name: path}, folder)
    | beam.Values()
    | 'read' >> beam.Map(pipeline.guarded, read_lines, folder, kind)
  )


@beam.ptransform_fn
def _ids(lines: PCollection, name: str) -> PCollection:
  """The raw ids of all spans, in the order in which they first appear."""
  return lines | 'ids' >> beam.Map(_with_positions, name) | pipeline.in_order()


def _with_positions(lines: Lines, name: str) -> pa.Table:
  ids = getattr(lines, name)
  # An id takes at least one byte of the span, so positions of spans differ.
  position = lines.span.start + np.arange(len(ids))
  return pa.table({'id': ids, 'position': position})


def _rows(
  lines: Lines,
  counts: list[tuple[int, int]],
  items: pa.Int64Array,
  users: pa.Table | None,
  tails: pa.Int64Array | None,
) -> tuple[np.ndarray, Rows]:
  start = lines.span.start
  before = sum(count for other, count in counts if other < start)
  rows = rows_of(lines, items, users, tails)
  return before + np.arange(lines.num_rows), rows
