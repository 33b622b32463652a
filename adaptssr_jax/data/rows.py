"""The rows of a data set, dealt out to splits and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.errors import DataError

Example = tuple[int, dict[str, Any]]
Kind = Literal['pretrain', 'classification', 'conversion', 'ranking']

TASK_SHARES = {'train': 0.6, 'validation': 0.2, 'test': 0.2}


def shown(cell: Any, most: int = 80) -> str:
  """A cell for a message: quoted, and cut if it is long.

  Example:
    >>> shown('x'), shown('y' * 1000, most=4)
    ("'x'", "'yyyy'...")
  """
  # A broken file may hold one of many megabytes.
  text = str(cell)
  return f'{text[:most]!r}{"..." * (len(text) > most)}'


class Vocabulary(NamedTuple):
  """The raw names behind the numbers: `items[i - 1]` is that of item i.

  Args:
    items: raw item ids, in the order of their numbers.
    labels: names of the classes, or raw ids of the targets of a ranking task.
  """

  items: Sequence[str]
  labels: Sequence[str] = ()


class Rows(NamedTuple):
  """The examples of one split, column by column.

  Args:
    user_id: raw user id of each row.
    items: the behaviours of each row, item numbers from 1, oldest first.
    label: class of each row, int [rows], for classification and conversion.
    targets: the row's positive, then the user's other ones, for ranking.
  """

  user_id: Sequence[str]
  items: Ragged
  label: np.ndarray | None = None
  targets: Ragged | None = None

  def take(self, rows: np.ndarray) -> Rows:
    """These rows, in this order."""
    return Rows(
      user_id=[self.user_id[row] for row in rows],
      items=self.items.take(rows),
      label=None if self.label is None else self.label[rows],
      targets=None if self.targets is None else self.targets.take(rows),
    )


def examples_of(
  rows: Rows, first: int = 0, end: int | None = None
) -> Iterator[Example]:
  """Some rows as examples, with their places among all of them as the keys."""
  for row in range(len(rows.items))[first:end]:
    example = {'user_id': rows.user_id[row], 'items': rows.items[row]}
    if rows.label is not None:
      example['label'] = rows.label[row]
    if rows.targets is not None:
      example['targets'] = rows.targets[row]
    yield row, example


def split_rows(
  rows: Rows, shares: Mapping[str, float], seed: int
) -> dict[str, Rows]:
  """Shuffles the rows and deals them out, the last split taking the rest."""
  return _take(rows, deal_out(len(rows.items), shares, seed))


def deal_out(
  count: int, shares: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
  """The numbers 0..count-1 of each split, shuffled."""
  order = np.random.default_rng(seed).permutation(count)
  ends = np.cumsum(list(shares.values()))[:-1] * count
  # 0.6 + 0.2 is 0.8 only up to rounding, and must not cost the split a row.
  parts = np.split(order, np.floor(ends + 1e-6).astype(int))
  return dict(zip(shares, parts, strict=True))


def deal_out_for_pretraining(count: int) -> dict[str, np.ndarray]:
  """Deals row numbers out 90/10, always in the same way."""
  return deal_out(count, {'train': 0.9, 'validation': 0.1}, seed=0)


def deal_out_for_task(count: int) -> dict[str, np.ndarray]:
  """Deals row numbers out 60/20/20, always in the same way.

  Not by the permutation of pre-training: the users that it held out would all
  be test users here, and validation would tell less of the test.
  """
  return deal_out(count, TASK_SHARES, seed=1)


def split_for_pretraining(rows: Rows) -> dict[str, Rows]:
  """Deals rows out 90/10, always in the same way."""
  return _take(rows, deal_out_for_pretraining(len(rows.items)))


def split_for_task(rows: Rows) -> dict[str, Rows]:
  """Deals rows out 60/20/20, always in the same way."""
  return _take(rows, deal_out_for_task(len(rows.items)))


def _take(rows: Rows, parts: Mapping[str, np.ndarray]) -> dict[str, Rows]:
  return {name: rows.take(part) for name, part in parts.items()}


def one_row_a_positive(rows: Rows) -> Rows:
  """Repeats each row for each of its targets, which comes first in its row.

  Example:
    >>> targets = Ragged.from_rows([[4, 7, 9], [5]])
    >>> rows = Rows(['a', 'b'], Ragged.from_rows([[1], [2]]), targets=targets)
    >>> targets = one_row_a_positive(rows).targets
    >>> [targets[row].tolist() for row in range(4)]
    [[4, 7, 9], [7, 4, 9], [9, 4, 7], [5]]
  """
  row, place = _positives(rows)
  return _with_positives(rows, row, place)


def split_positives(rows: Rows) -> dict[str, Rows]:
  """What `split_for_task` makes of `one_row_a_positive(rows)`, in less memory.

  The repeated rows are never held all at once and once more in their splits.
  """
  row, place = _positives(rows)
  parts = deal_out_for_task(len(row))
  return {
    split: _with_positives(rows, row[part], place[part])
    for split, part in parts.items()
  }


def _positives(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
  """Of each positive: its row, and its place among the targets of the row."""
  counts = rows.targets.lengths
  row = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
  return row, place.astype(np.int32)


def _with_positives(rows: Rows, row: np.ndarray, own: np.ndarray) -> Rows:
  """These rows, the target in place `own` of each moved to the front."""
  repeated = rows.take(row)
  targets = repeated.targets
  # Where each value will be, and from where it comes.
  own = np.repeat(own, targets.lengths)
  begin = np.repeat(targets.offsets[:-1], targets.lengths)
  place = np.arange(len(targets.values)) - begin
  source = np.where(place == 0, own, place - (place <= own))
  moved = Ragged(targets.values[begin + source], targets.offsets)
  return repeated._replace(targets=moved)


def check_rows(
  rows: Rows, vocabulary: Vocabulary, kind: Kind, *, where: str
) -> None:
  """Raises `DataError` at the first row that no model could be trained on."""
  check_count(len(rows.items), where=where)
  empty = np.flatnonzero(rows.items.lengths == 0)
  if len(empty):
    raise DataError(
      f'user {shown(rows.user_id[empty[0]])} of the {where} has no '
      'behaviours; remove such users from the source'
    )
  _check_range(rows.items, rows, 'item', 1, len(vocabulary.items), where)
  if kind in ('classification', 'conversion'):
    labels = Ragged.from_lengths(rows.label, np.ones(len(rows.label), int))
    last = len(vocabulary.labels) - 1
    _check_range(labels, rows, 'label', 0, last, where)
  if kind == 'ranking':
    last = len(vocabulary.labels) - 1
    _check_range(rows.targets, rows, 'target', 0, last, where)


def check_count(rows: int, *, where: str) -> None:
  """Raises `DataError` for a split without rows."""
  if not rows:
    raise DataError(
      f'the {where} has no users; the data set is empty or too small to '
      'be split: give it more users'
    )


def _check_range(
  column: Ragged, rows: Rows, what: str, first: int, last: int, where: str
) -> None:
  bad = np.flatnonzero((column.values < first) | (column.values > last))
  if len(bad):
    row = np.searchsorted(column.offsets, bad[0], side='right') - 1
    raise DataError(
      f'{what} {column.values[bad[0]]} of user {shown(rows.user_id[row])} in '
      f'the {where} is outside {first}..{last}'
    )
