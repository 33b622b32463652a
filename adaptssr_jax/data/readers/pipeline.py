"""What the Apache Beam pipelines of all data sets have in common.

A source is cut into spans, of which any worker reads any. What is read goes on
as tables of many rows, since a pipeline takes some microseconds for each of its
elements. Ids are numbered by the smallest `place` where each stands, an integer
that grows as the source is read.
"""

from __future__ import annotations

import functools
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
from adaptssr_jax.data.readers.lines import Span, is_parquet, text_blocks
from adaptssr_jax.data.rows import DataError, Rows, check_count, examples_of

# Bytes of a span of text: some seconds of work.
_SPAN = 1 << 26
# All rows of the users of a bucket are in the memory of one worker.
_BUCKETS = 256


class Guarded(beam.DoFn):
  """Calls a generator with each element, on any worker.

  Args:
    function: its `DataError` or `OSError` is raised again by
      `beam.errors_left_in`.
    folder: for errors.
  """

  def __init__(self, function: Callable, folder: pathlib.Path) -> None:
    self._function = function
    self._folder = str(folder)

  def process(self, element: Any, *side_inputs: Any) -> Iterator:
    """As the function; side inputs follow the element."""
    try:
      yield from self._function(element, *side_inputs)
    except (DataError, OSError) as error:
      leave_error(error, self._folder)
      raise


def each(
  function: Callable, folder: pathlib.Path, *side_inputs: Any
) -> beam.ParDo:
  """Calls a generator with each element; see `Guarded`."""
  return beam.ParDo(Guarded(function, folder), *side_inputs)


@beam.ptransform_fn
def spans_of(
  begin: PBegin, files: Mapping[Hashable, pathlib.Path], folder: pathlib.Path
) -> PCollection:
  """Cuts files into spans of lines or row groups: (key of the file, span).

  CSV in which a quoted cell may hold a line break is one span.
  """
  cut = [
    (file, span) for file, path in files.items() for span in cut_file(path)
  ]
  return (
    begin
    | 'cut' >> beam.Create(cut)
    | 'scan anywhere' >> beam.Reshuffle()
    | 'scan' >> each(scan, folder)
    | 'file' >> beam.GroupByKey()
    | 'count lines' >> beam.FlatMapTuple(with_lines)
    | 'read anywhere' >> beam.Reshuffle()
  )


def cut_file(path: pathlib.Path) -> list[Span]:
  """The spans of a file, without the numbers of their lines."""
  starts = range(0, path.stat().st_size, _SPAN)
  if is_parquet(path):
    try:
      metadata = pyarrow.parquet.read_metadata(path)
    except pa.ArrowException:
      # Whoever reads it says what is wrong with it.
      return [Span(path)]
    groups = range(metadata.num_row_groups)
    starts = [at for at in groups if metadata.row_group(at).num_rows]
  ends = [*starts[1:], None]
  spans = [Span(path, *span) for span in zip(starts, ends, strict=False)]
  return spans or [Span(path)]


def scan(
  element: tuple[Hashable, Span],
) -> Iterator[tuple[Hashable, tuple[Span, int, bool]]]:
  """The number of lines of a span, and whether its file may be cut there."""
  file, span = element
  lines, is_plain = 0, True
  for block in () if is_parquet(span.path) else text_blocks(span):
    lines += block.text.count(b'\n')
    # A line break between quotation marks leaves one of them in a line.
    if b'"' in block.text and span.path.suffix.lower() == '.csv':
      counts = (line.count(b'"') for line in block.text.split(b'\n'))
      is_plain = is_plain and not any(count % 2 for count in counts)
  yield file, (span, lines, is_plain)


def with_lines(
  file: Hashable, scanned: Iterable[tuple[Span, int, bool]]
) -> Iterator[tuple[Hashable, Span]]:
  """The spans of a file, with the numbers of their first lines."""
  scanned = sorted(scanned, key=lambda found: found[0].start)
  if not all(is_plain for _, _, is_plain in scanned):
    yield file, scanned[0][0]._replace(end=None)
    return
  line = 1
  for span, lines, _ in scanned:
    yield file, span._replace(line=line)
    line += lines


def buckets(table: pa.Table, column: str) -> Iterator[tuple[int, pa.Table]]:
  """The rows of a table by the bucket of the ids in a column, text."""
  encoded = table[column].combine_chunks().dictionary_encode()
  names = encoded.dictionary.cast(pa.binary()).to_pylist()
  bucket = np.array([zlib.crc32(name) % _BUCKETS for name in names], np.uint8)
  bucket = bucket[encoded.indices.to_numpy()]
  for number in np.unique(bucket).tolist():
    yield number, table.take(np.flatnonzero(bucket == number))


@beam.ptransform_fn
def in_order(tables: PCollection) -> PCollection:
  """All ids in the order they first appear, one array.

  Args:
    tables: of `id` and `place`.
  """
  return (
    tables
    | 'first place' >> beam.CombineGlobally(first_places)
    | 'in order'
    >> beam.Map(lambda table: table.sort_by('place')['id'].combine_chunks())
  )


def first_places(tables: Iterable[pa.Table]) -> pa.Table:
  """Of each id the smallest place."""
  tables = list(tables)
  # Beam also combines nothing.
  if not tables:
    return pa.table({'id': pa.nulls(0), 'place': pa.array([], pa.int64())})
  table = pa.concat_tables(tables, promote_options='permissive').group_by('id')
  return table.aggregate([('place', 'min')]).rename_columns(['id', 'place'])


def save(path: pathlib.Path) -> beam.PTransform:
  """Writes an element, a list or an array, as one JSON list of texts."""
  return beam.Map(functools.partial(_save, path=str(path)))


def _save(values: Iterable, *, path: str) -> None:
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
  """The examples of each split, keyed by their place in it.

  Args:
    rows: (numbers, rows): the number of each labelled row, which are those of
      `targets` in a ranking, and the rows.
    total: how many labelled rows there are, one number.
    split: which of so many rows go to each split, in order.
    source: what they are of, for messages.
  """
  # On one worker, as the order is that of one generator.
  draw = functools.partial(_places, split=split, source=source)
  places = total | 'places' >> each(draw, folder)
  splits = tuple(split(0))
  take = beam.FlatMap(_take, AsSingleton(places))
  taken = rows | 'take' >> take.with_outputs(*splits)
  return {name: taken[name] for name in splits}


def _places(
  total: int, *, split: Callable[[int], dict[str, np.ndarray]], source: str
) -> Iterator[dict[str, tuple[int, np.ndarray]]]:
  """The index of each row in the joined splits, and the size of each split."""
  parts = split(total)
  for name, part in parts.items():
    check_count(len(part), where=f'{name} split of {source}')
  place = np.empty(total, np.int64)
  place[np.concatenate(list(parts.values()))] = np.arange(total)
  yield place, {name: len(part) for name, part in parts.items()}


def _take(
  element: tuple[np.ndarray, Rows],
  places: tuple[np.ndarray, dict[str, int]],
) -> Iterator[TaggedOutput]:
  """The examples that some rows are in each split."""
  numbers, rows = element
  place, start = places[0][numbers], 0
  for name, size in places[1].items():
    mine = np.flatnonzero((place >= start) & (place < start + size))
    mine = mine[np.argsort(place[mine])]
    keys = place[mine] - start
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
