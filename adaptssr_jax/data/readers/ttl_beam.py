"""The TTL data set as an Apache Beam pipeline.

Each span of a file is parsed twice, on any worker: first for its ids and its
users, and again for its examples, once all of these are numbered.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, PBegin, PCollection, TaggedOutput

from adaptssr_jax.data import pipeline
from adaptssr_jax.data.dealing import blocks, deal_out, each_positive
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.ttl_lines import (
  Lines,
  Numbering,
  count_lines,
  read_lines,
)
from adaptssr_jax.data.readers.ttl_rows import (
  PRETRAIN_FILE,
  check_known,
  dropped_note,
  no_such_user,
  with_digests,
  with_tails,
)
from adaptssr_jax.data.rows import Kind, Rows

# Bytes of a span: some seconds of work.
_SPAN = 1 << 26


class _Span(NamedTuple):
  """The lines of a file that begin between two bytes."""

  path: str
  kind: Kind
  begin: int
  end: int


def ttl_examples(
  begin: beam.Pipeline,
  pretrain: pathlib.Path,
  task: pathlib.Path | None,
  *,
  kind: Kind,
  folder: pathlib.Path,
  **split: Any,
) -> dict[str, PCollection]:
  """The examples of each split, keyed by their place in it.

  Args:
    pretrain: the file of pre-training.
    task: the file of a task; None for pre-training itself.
    kind: of the lines of the task.
    folder: for errors, and for items, labels and notes as JSON.
    **split: arguments of `dealing.deal_out`.
  """
  lines, before, survey = begin | 'users' >> _read(pretrain, 'pretrain', folder)
  items, names = survey.items | 'items' >> pipeline.number_in_order()
  _ = names | 'save items' >> pipeline.save(folder / 'items.json')
  found, dropped = {}, [survey.dropped]
  if task is not None:
    last = survey.users | 'last line' >> beam.CombinePerKey(
      pipeline.last_number
    )
    lines, before, survey = begin | 'lines' >> _read(task, kind, folder)
    found['users'] = survey.users | 'find users' >> pipeline.look_up(last)
    tails, names = survey.tails | 'tails' >> pipeline.number_in_order()
    _ = names | 'save labels' >> pipeline.save(folder / 'labels.json')
    found['tails'] = survey.tails | 'find tails' >> pipeline.look_up(tails)
    dropped.append(survey.dropped)
  found['items'] = survey.items | 'find items' >> pipeline.look_up(items)
  _ = (
    dropped
    | 'all dropped' >> beam.Flatten()
    | 'of a file' >> beam.GroupByKey()
    | 'notes' >> beam.MapTuple(_note)
    | 'save notes' >> pipeline.save(folder / 'notes.json')
  )
  rows_before = survey.counts | 'rows before' >> pipeline.cumulate()
  rows = (
    {'spans': lines, **found}
    | 'what is found' >> beam.CoGroupByKey()
    | 'rows'
    >> pipeline.each(
      _rows, folder, AsSingleton(before), AsSingleton(rows_before)
    )
  )
  total = (
    survey.counts
    | 'each' >> beam.Values()
    | 'total' >> beam.CombineGlobally(sum)
  )
  return rows | 'deal out' >> deal_out(
    total=total, folder=folder, by_user=kind == 'ranking', **split
  )


@beam.ptransform_fn
def _read(
  begin: PBegin, path: pathlib.Path, kind: Kind, folder: pathlib.Path
) -> tuple[PCollection, PCollection, Any]:
  """The spans of a file, the lines before each, and what `_survey` yields."""
  size = path.stat().st_size
  spans = (
    begin
    | beam.Create(
      [
        (number, _Span(str(path), kind, start, min(start + _SPAN, size)))
        for number, start in enumerate(range(0, size, _SPAN))
      ]
    )
    | beam.Reshuffle()
  )
  before = (
    spans
    | 'count lines' >> pipeline.each(_count, folder)
    | 'lines before' >> pipeline.cumulate()
  )
  survey = pipeline.each(_survey, folder, AsSingleton(before))
  outputs = survey.with_outputs('counts', 'items', 'tails', 'users', 'dropped')
  return spans, before, spans | 'survey' >> outputs


def _count(element: tuple[int, _Span]) -> Iterator[tuple[int, int]]:
  number, span = element
  path = pathlib.Path(span.path)
  yield number, count_lines(path, span.begin, span.end)


def _lines(span: _Span, before: int) -> Iterator[Lines]:
  return read_lines(
    pathlib.Path(span.path),
    span.kind,
    begin=span.begin,
    end=span.end,
    first=before + 1,
  )


def _survey(
  element: tuple[int, _Span], before: dict[int, int]
) -> Iterator[TaggedOutput]:
  """What is read in a span first.

  Args:
    element: the number of the span, and itself.
    before: the lines before each span.

  Yields:
    counts: how many rows its lines become: (number, count).
    items: its items: (bucket, table of id and place).
    tails: its labels or targets, in the same way.
    users: its lines that have behaviours: (bucket, table of id, which is a
      digest, place, and number of the line).
    dropped: its lines that have none: (path, (count, first line)).
  """
  number, span = element
  items, tails, users, count = [], [], [], 0
  for lines in _lines(span, before[number]):
    items.append(lines.items.values)
    tails.append(lines.tails.values)
    users.append(with_digests(lines))
    is_pretrain = span.kind == 'pretrain'
    count += len(lines.number if is_pretrain else lines.tails.values)
    if len(lines.dropped):
      dropped = (len(lines.dropped), int(lines.dropped[0]))
      yield TaggedOutput('dropped', (span.path, dropped))
  yield TaggedOutput('counts', (number, count))
  # No line may begin in a span.
  if not users:
    return
  users = pa.Table.from_batches(users)
  users = pipeline.placed(users['digest'], number).append_column(
    'number', users['line']
  )
  yield from pipeline.tagged('users', users)
  for tag, parts in (('items', items), ('tails', tails)):
    ids = pa.chunked_array(parts, pa.int64()).unique()
    yield from pipeline.tagged(tag, pipeline.placed(ids, number))


def _note(path: str, dropped: Iterable[tuple[int, int]]) -> tuple:
  counts, lines = zip(*dropped, strict=True)
  # As without Beam, that of pre-training first.
  order = not path.endswith(PRETRAIN_FILE)
  return order, [dropped_note(path, sum(counts), min(lines))]


def _rows(
  element: tuple[int, dict[str, Iterable]],
  before: dict[int, int],
  rows_before: dict[int, int],
) -> Iterator[tuple[int, tuple]]:
  number, found = element
  (span,) = found['spans']
  path, kind = pathlib.Path(span.path), span.kind
  items, tails, lines = Numbering(), Numbering(), []
  for part in _lines(span, before[number]):
    items.append(part.items)
    tails.append(part.tails)
    lines.append(part.number)
  # No line may begin in a span.
  if not lines:
    return
  line = np.concatenate(lines)
  items, ids = items.finish()
  numbers = pipeline.array_of(found['items'], len(ids))
  check_known(path, line, items, ids, numbers == 0)
  items = Ragged(numbers[items.values - 1].astype(np.int32), items.offsets)
  users = line
  if kind != 'pretrain':
    users = pipeline.array_of(found['users'], len(line))
    if not users.all():
      raise no_such_user(path, line[np.argmin(users)])
  rows = Rows([str(user) for user in users.tolist()], items)
  if kind != 'pretrain':
    tails, ids = tails.finish()
    numbers = pipeline.array_of(found['tails'], len(ids)).astype(np.int32)
    tails = Ragged(numbers[tails.values - 1] - 1, tails.offsets)
    rows = with_tails(rows, tails, kind)
  if kind == 'ranking':
    number_of_user = (line - 1).astype(np.int32)
    rows = each_positive(rows._replace(user_number=number_of_user))
  numbers = rows_before[number] + np.arange(len(rows.items))
  yield from blocks(rows, numbers)
