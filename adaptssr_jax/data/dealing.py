"""The rows of an Apache Beam pipeline, dealt out to the splits."""

from __future__ import annotations

import functools
import operator
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection, TaggedOutput

from adaptssr_jax.data.pipeline import each, groups
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import (
  Rows,
  check_count,
  examples_of,
)

# Rows that are dealt out to the splits at once.
_BLOCK = 4096


@beam.ptransform_fn
def deal_out(
  rows: PCollection,
  *,
  total: PCollection,
  split: Callable[[int], dict[str, np.ndarray]],
  splits: Sequence[str],
  source: str,
  folder: pathlib.Path,
  by_user: bool = False,
) -> dict[str, PCollection]:
  """The examples of each split, keyed by their place in it.

  Args:
    rows: as `blocks` gives them.
    total: how many rows there are, one number.
    split: which of so many rows go to each split, in order.
    by_user: the rows are those of `each_positive`, and what a user has in a
      split becomes one example.
  """
  # On one worker, as the order is that of one generator.
  draw = functools.partial(_places, split=split, source=source)
  places = total | 'places' >> each(draw, folder)
  dealt = (
    {'places': places, 'rows': rows}
    | 'blocks' >> beam.CoGroupByKey()
    | 'deal' >> beam.FlatMap(_deal, splits).with_outputs(*splits)
  )
  if not by_user:
    return {name: dealt[name] for name in splits}
  return {
    name: dealt[name]
    | f'users of {name}'
    >> beam.GroupBy(lambda dealt: int(dealt[1]['user_number']))
    | f'positives of {name}' >> beam.MapTuple(_with_positives)
    for name in splits
  }


def each_positive(rows: Rows) -> Rows:
  """A row for each target of each row, as its only positive."""
  of_row = np.repeat(np.arange(len(rows.targets)), rows.targets.lengths)
  offsets = np.arange(len(of_row) + 1)
  positives = Ragged(rows.targets.values, offsets)
  return rows.take(of_row)._replace(positives=positives)


def blocks(rows: Rows, numbers: np.ndarray) -> Iterator[tuple[int, tuple]]:
  """Rows with these numbers by the block in which they are dealt out."""
  for block, at in groups(numbers // _BLOCK):
    yield block, (numbers[at] % _BLOCK, rows.take(at))


def _with_positives(
  user: int, dealt: Iterable[tuple[int, dict[str, Any]]]
) -> tuple[int, dict[str, Any]]:
  """One example of the rows of a user in a split, at the place of the first."""
  del user
  places, rows = zip(*sorted(dealt, key=operator.itemgetter(0)), strict=True)
  positives = np.concatenate([row['positives'] for row in rows])
  own = {'positives': positives, 'places': np.array(places, np.int32)}
  return places[0], rows[0] | own


def _places(
  total: int, *, split: Callable[[int], dict[str, np.ndarray]], source: str
) -> Iterator[tuple[int, np.ndarray]]:
  places = np.zeros((total, 2), np.int64)
  for at, (name, part) in enumerate(split(total).items()):
    check_count(len(part), where=f'{name} split of {source}')
    places[part] = np.stack([np.full(len(part), at), np.arange(len(part))], 1)
  for start in range(0, total, _BLOCK):
    yield start // _BLOCK, places[start : start + _BLOCK]


def _deal(
  block: tuple[int, dict[str, Iterable]], splits: Sequence[str]
) -> Iterator[TaggedOutput]:
  (places,) = block[1]['places']
  for numbers, rows in block[1]['rows']:
    for row, example in examples_of(rows):
      at, place = places[numbers[row]].tolist()
      yield TaggedOutput(splits[at], (place, example))
