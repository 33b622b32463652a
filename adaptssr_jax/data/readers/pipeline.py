"""Steps that the Apache Beam pipelines of all data sets share.

A source is divided into spans, which any worker can read. Rows are passed on in
tables of many rows, since a pipeline takes some microseconds per element. Ids
are numbered by the smallest `position` at which they occur, an integer that
grows through the source.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from apache_beam.pvalue import AsSingleton, PBegin, PCollection, TaggedOutput

from adaptssr_jax.data.beam import leave_error
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.lines import (
  Span,
  format_of,
  is_compressed,
  is_parquet,
  text_blocks,
)
from adaptssr_jax.data.rows import DataError, Rows, check_count, examples_of

# Bytes of a span of text, which take some seconds to process.
_SPAN = 1 << 26
# One worker holds all rows of a bucket of users in memory.
_BUCKETS = 256


def guarded(
  element: Any, function: Callable, folder: pathlib.Path, *side_inputs: Any
) -> Any:
  """Calls a function with an element, in `beam.Map` or `beam.FlatMap`.

  Args:
    function: called with the element and the side inputs; no generator. If it
      raises a `DataError` or an `OSError`, `beam.errors_left_in` raises that
      again.
    folder: for errors.
  """
  try:
    return function(element, *side_inputs)
  except (DataError, OSError) as error:
    leave_error(error, str(folder))
    raise


@beam.ptransform_fn
def spans_of(
  begin: PBegin, files: Mapping[Hashable, pathlib.Path], folder: pathlib.Path
) -> PCollection:
  """Divides files into spans of lines or row groups: (key of the file, span).

  A compressed file, and a CSV file in which a quoted cell may hold a line
  break, become one span.
  """
  cut = [
    (file, span) for file, path in files.items() for span in cut_file(path)
  ]
  return (
    begin
    | 'cut' >> beam.Create(cut)
    | 'scan anywhere' >> beam.Reshuffle()
    | 'scan' >> beam.Map(guarded, scan, folder)
    | 'file' >> beam.GroupByKey()
    | 'count lines' >> beam.FlatMapTuple(with_lines)
    | 'read anywhere' >> beam.Reshuffle()
  )


def cut_file(path: pathlib.Path) -> list[Span]:
  """The spans of a file, without line numbers."""
  starts = range(0, path.stat().st_size, _SPAN)
  if is_compressed(path):
    return [Span(path)]
  if is_parquet(path):
    try:
      metadata = pyarrow.parquet.read_metadata(path)
    except pa.ArrowException:
      # The reader of the span raises the error.
      return [Span(path)]
    groups = range(metadata.num_row_groups)
    starts = [at for at in groups if metadata.row_group(at).num_rows]
  ends = [*starts[1:], None]
  spans = [Span(path, *span) for span in zip(starts, ends, strict=False)]
  return spans or [Span(path)]


def scan(
  element: tuple[Hashable, Span],
) -> tuple[Hashable, tuple[Span, int, bool]]:
  """Counts the lines of a span and checks that none has an open quotation."""
  file, span = element
  lines, is_plain = 0, True
  for block in () if is_parquet(span.path) else text_blocks(span):
    lines += block.text.count(b'\n')
    # A line break in a quoted cell leaves an odd number of marks in its line.
    if b'"' in block.text and format_of(span.path) == '.csv':
      counts = (line.count(b'"') for line in block.text.split(b'\n'))
      is_plain = is_plain and not any(count % 2 for count in counts)
  return file, (span, lines, is_plain)


def with_lines(
  file: Hashable, scanned: Iterable[tuple[Span, int, bool]]
) -> Iterator[tuple[Hashable, Span]]:
  """The spans of a file with the number of the first line of each."""
  scanned = sorted(scanned, key=lambda found: found[0].start)
  if not all(is_plain for _, _, is_plain in scanned):
    yield file, scanned[0][0]._replace(end=None)
    return
  line = 1
  for span, lines, _ in scanned:
    yield file, span._replace(line=line)
    line += lines


def buckets(table: pa.Table, column: str) -> Iterator[tuple[int, pa.Table]]:
  """Divides the rows of a table into buckets by the ids in a text column."""
  encoded = table[column].combine_chunks().dictionary_encode()
  names = encoded.dictionary.cast(pa.binary()).to_pylist()
  bucket = np.array([zlib.crc32(name) % _BUCKETS for name in names], np.uint8)
  bucket = bucket[encoded.indices.to_numpy()]
  for number in np.unique(bucket).tolist():
    yield number, table.take(np.flatnonzero(bucket == number))


@beam.ptransform_fn
def in_order(tables: PCollection) -> PCollection:
  """All distinct ids in the order in which they first appear, as one array.

  Args:
    tables: tables of `id` and `position`.
  """
  return (
    tables
    | 'first position' >> beam.CombineGlobally(first_positions)
    | 'in order'
    >> beam.Map(lambda table: table.sort_by('position')['id'].combine_chunks())
  )


def first_positions(tables: Iterable[pa.Table]) -> pa.Table:
  """The distinct ids of tables of `id` and `position`, each at its first."""
  tables = list(tables)
  # Beam may also combine no tables.
  if not tables:
    return pa.table({'id': pa.nulls(0), 'position': pa.array([], pa.int64())})
  table = pa.concat_tables(tables, promote_options='permissive').group_by('id')
  table = table.aggregate([('position', 'min')])
  return table.rename_columns(['id', 'position'])


def save(path: pathlib.Path) -> beam.PTransform:
  """Writes an element, a list or an array, as a JSON list of texts."""
  return beam.Map(_save, str(path))


def _save(values: Iterable, path: str) -> None:
  pathlib.Path(path).write_text(json.dumps(list(map(str, values))))


@beam.ptransform_fn
def split_examples(
  rows: PCollection,
  *,
  total: PCollection,
  split: Callable[[int], dict[str, np.ndarray]],
  source: str,
  folder: pathlib.Path,
) -> dict[str, PCollection]:
  """The examples of each split, keyed by their row in the split.

  Args:
    rows: pairs (numbers, rows): the number of each labelled row, and the rows.
      In a ranking, the labelled rows are the values of `targets`.
    total: one number, that of all labelled rows.
    split: {name of a split: its row numbers}, in order, from the number of all
      rows.
    source: the source, for messages.
  """
  # One generator draws the order of all rows, so one worker draws the splits.
  draw = beam.Map(guarded, _positions, folder, split, source)
  positions = total | 'positions' >> draw
  splits = tuple(split(0))
  take = beam.FlatMap(_take, AsSingleton(positions))
  taken = rows | 'take' >> take.with_outputs(*splits)
  return {name: taken[name] for name in splits}


def _positions(
  total: int, split: Callable[[int], dict[str, np.ndarray]], source: str
) -> tuple[np.ndarray, dict[str, int]]:
  """The position of each row in all splits together, and {split: size}."""
  parts = split(total)
  for name, part in parts.items():
    check_count(len(part), where=f'{name} split of {source}')
  position = np.empty(total, np.int64)
  position[np.concatenate(list(parts.values()))] = np.arange(total)
  return position, {name: len(part) for name, part in parts.items()}


def _take(
  element: tuple[np.ndarray, Rows],
  positions: tuple[np.ndarray, dict[str, int]],
) -> Iterator[TaggedOutput]:
  """Yields the examples that some rows become, tagged by their split."""
  numbers, rows = element
  position, start = positions[0][numbers], 0
  for name, size in positions[1].items():
    mine = np.flatnonzero((position >= start) & (position < start + size))
    mine = mine[np.argsort(position[mine])]
    keys = position[mine] - start
    if rows.targets is None:
      users = rows.take(mine)
    else:
      users = rows.with_positives(mine)
      values = keys[users.places.values].astype(np.int32)
      keys = values[users.places.offsets[:-1]]
      users = users._replace(places=Ragged(values, users.places.offsets))
    for at, example in examples_of(users):
      yield TaggedOutput(name, (int(keys[at]), example))
    start += size
