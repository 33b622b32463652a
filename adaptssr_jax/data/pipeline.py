"""What the Apache Beam pipelines of all data sets have in common.

A source is cut into spans, which are numbered. What is read in a span goes on
as tables of many rows, since a pipeline takes some microseconds for each of its
elements. Columns of the tables: an `id`, which is a raw id or a digest; the
`place` where it stands, an integer that grows as the source is read, such as a
row, or a span and the order in it; and the `number` of an id. All rows of an id
are in one of many buckets.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsSingleton, PCollection, TaggedOutput

from adaptssr_jax.data.beam import leave_error
from adaptssr_jax.data.rows import DataError

# The ids of a bucket are in the memory of one worker.
_BUCKETS = 256
# Of a place, which is one integer: the span is in the bits above.
_ORDER_BITS = 32
# Places of which the new ids are sorted at once.
_RANGE_BITS = 20


class Guarded(beam.DoFn):
  """Calls a generator with each element, on any worker.

  Args:
    function: yields elements; its `DataError` or `OSError` is raised again by
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


def groups(keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Each key, and the places where it stands.

  Example:
    >>> [(key, at.tolist()) for key, at in groups(np.array([7, 5, 7]))]
    [(5, [1]), (7, [0, 2])]
  """
  order = np.argsort(keys, kind='stable')
  distinct, starts = np.unique(keys[order], return_index=True)
  # Without any keys, there is still one part, which is empty.
  yield from zip(distinct.tolist(), np.split(order, starts[1:]), strict=False)


def buckets(
  table: pa.Table, column: str = 'id'
) -> Iterator[tuple[int, pa.Table]]:
  """The rows of a table by the bucket of the ids in a column."""
  ids = table[column].combine_chunks()
  if pa.types.is_integer(ids.type):
    bucket = ids.to_numpy() % _BUCKETS
  else:
    encoded = ids.dictionary_encode()
    names = encoded.dictionary.cast(pa.binary()).to_pylist()
    bucket = np.array([zlib.crc32(name) for name in names], int) % _BUCKETS
    bucket = bucket[encoded.indices.to_numpy()]
  for number, rows in groups(bucket):
    yield number, table.take(rows)


def tagged(
  tag: str, table: pa.Table, column: str = 'id'
) -> Iterator[TaggedOutput]:
  """The `buckets` of a table, as one of the outputs of a step."""
  for element in buckets(table, column):
    yield TaggedOutput(tag, element)


def placed(ids: pa.Array | pa.ChunkedArray, span: int) -> pa.Table:
  """Ids in the order in which they stand in a span, with their places."""
  place = (span << _ORDER_BITS) + np.arange(len(ids))
  return pa.table({'id': ids, 'place': place})


@beam.ptransform_fn
def cumulate(counts: PCollection) -> PCollection:
  """From (span, count) one dict, for a side input: the sum of those before."""
  return counts | beam.combiners.ToList() | beam.Map(_cumulate)


def _cumulate(counts: list[tuple[int, int]]) -> dict[int, int]:
  spans, values = zip(*sorted(counts), strict=True) if counts else ((), ())
  before = np.cumsum(values, dtype=int) - values
  return dict(zip(spans, before.tolist(), strict=True))


@beam.ptransform_fn
def number_in_order(
  appearances: PCollection,
) -> tuple[PCollection, PCollection]:
  """Numbers ids from 1, in the order they first appear.

  Args:
    appearances: (bucket, table of id and place).

  Returns:
    The numbers, (bucket, table of id and number), and the ids that are new in
    each range of places, in order: (range, [id, ...]).
  """
  new = (
    appearances
    | 'first place' >> beam.CombinePerKey(first_place)
    | 'to ranges' >> beam.FlatMapTuple(_to_ranges)
    | 'new in range' >> beam.GroupByKey()
    | 'in order' >> beam.MapTuple(_in_order)
  )
  before = (
    new
    | 'count' >> beam.MapTuple(lambda number, keys: (number, len(keys)))
    | 'new before' >> cumulate()
  )
  numbers = new | 'number' >> beam.FlatMap(_number, AsSingleton(before))
  return numbers, new


def first_place(tables: Iterable[pa.Table]) -> pa.Table:
  """Of each id the smallest place."""
  return _aggregate(tables, 'place', 'min')


def last_number(tables: Iterable[pa.Table]) -> pa.Table:
  """Of each id the greatest number."""
  return _aggregate(tables, 'number', 'max')


def _aggregate(
  tables: Iterable[pa.Table], column: str, function: str
) -> pa.Table:
  tables = list(tables)
  # Beam also combines nothing.
  if not tables:
    return pa.table({'id': pa.nulls(0), column: pa.array([], pa.int64())})
  table = pa.concat_tables(tables, promote_options='permissive')
  chosen = table.group_by('id').aggregate([(column, function)])
  return chosen.rename_columns(['id', column])


def _to_ranges(bucket: int, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
  del bucket
  for number, rows in groups(table['place'].to_numpy() >> _RANGE_BITS):
    yield number, table.take(rows)


def _in_order(number: int, tables: Iterable[pa.Table]) -> tuple[int, list]:
  return number, pa.concat_tables(tables).sort_by('place')['id'].to_pylist()


def _number(
  new: tuple[int, list], before: dict[int, int]
) -> Iterator[tuple[int, pa.Table]]:
  at, keys = new
  number = before[at] + 1 + np.arange(len(keys))
  yield from buckets(pa.table({'id': keys, 'number': number}))


@beam.ptransform_fn
def look_up(wanted: PCollection, numbers: PCollection) -> PCollection:
  """The numbers of the ids of each span, for `array_of`.

  Args:
    wanted: the ids: (bucket, table of id and place), each of one span.
    numbers: (bucket, table of id and number), of `number_in_order`.
  """
  return (
    {'wanted': wanted, 'numbers': numbers}
    | beam.CoGroupByKey()
    | beam.FlatMapTuple(_look_up)
  )


def _look_up(bucket: int, found: dict[str, Iterable[pa.Table]]) -> Iterator:
  del bucket
  known = list(found['numbers'])
  for table in found['wanted']:
    number = np.zeros(len(table), np.int64)
    if known:
      known = [pa.concat_tables(known)]
      ids = known[0]['id'].cast(table['id'].type)
      at = pc.index_in(table['id'], value_set=ids)
      number = known[0]['number'].take(at).fill_null(0).to_numpy()
    place = table['place'].to_numpy()
    order = place & ((1 << _ORDER_BITS) - 1)
    yield int(place[0]) >> _ORDER_BITS, (order, number)


def array_of(
  found: Iterable[tuple[np.ndarray, np.ndarray]], size: int
) -> np.ndarray:
  """The number of each id of a span, 0 for those without: int64 [size]."""
  array = np.zeros(size, np.int64)
  for order, number in found:
    array[order] = number
  return array


@beam.ptransform_fn
def save(values: PCollection, path: pathlib.Path) -> PCollection:
  """Writes the texts of lists, (order, list), in order as one JSON list."""
  return values | beam.combiners.ToList() | beam.Map(_save, path=str(path))


def _save(values: list[tuple[Any, list]], *, path: str) -> None:
  texts = [str(value) for _, part in sorted(values) for value in part]
  pathlib.Path(path).write_text(json.dumps(texts))
