"""The rows of a data set, and functions that split and check them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.errors import DataError

Example = tuple[int, dict[str, Any]]
Kind = Literal['pretrain', 'classification', 'conversion', 'ranking']

# The columns of each kind of example in addition to user_id and items. Those in
# NUMBERS hold one number per example, the others a list.
COLUMNS: dict[Kind, tuple[str, ...]] = {
  'pretrain': (),
  'classification': ('label',),
  'conversion': ('label',),
  'ranking': ('user_number', 'targets', 'positives', 'places'),
}
NUMBERS = ('label', 'user_number')
TASK_SHARES = {'train': 0.6, 'validation': 0.2, 'test': 0.2}
_TASK_SEED = 1


def quote_cell(cell: Any) -> str:
  """Quotes a cell for a message, and truncates it to 80 characters."""
  # A damaged file may hold a cell of many megabytes.
  text = str(cell)
  return f'{text[:80]!r}{"..." * (len(text) > 80)}'


def ignore_progress(text: str) -> None:
  """Does nothing with a line of progress."""


class Vocabulary(NamedTuple):
  """The raw names of items and labels; `items[i - 1]` is that of item i.

  Args:
    items: raw item ids, in the order of their numbers.
    labels: names of the classes; for a ranking task, raw ids of the targets.
  """

  items: Sequence[str]
  labels: Sequence[str] = ()


class Rows(NamedTuple):
  """The examples of one split, column by column, as `builder` describes them.

  Args:
    user_id: raw user id of each example.
    items: the behaviours of each example, item numbers from 1, oldest first.
    label: class of each example, int [examples], for classification and
      conversion.
    targets: for ranking: the targets of each user, which must not be drawn as
      negatives. The next three are also for ranking only.
    positives: the targets of each user that are labelled rows of this split.
    places: the number in this split of the labelled row of each of `positives`,
      ascending.
    user_number: a number of each user, the same in all splits, int [examples].
  """

  user_id: Sequence[str]
  items: Ragged
  label: np.ndarray | None = None
  targets: Ragged | None = None
  positives: Ragged | None = None
  places: Ragged | None = None
  user_number: np.ndarray | None = None

  def take(self, rows: np.ndarray) -> Rows:
    """The examples of these indices, in this order."""
    return Rows(*(taken(column, rows) for column in self))

  def with_positives(self, part: np.ndarray) -> Rows:
    """The rows of one split of a ranking task.

    Args:
      part: the labelled rows of the split, in the order of the split, as
        indices into `targets.values`.

    Returns:
      The users who have labelled rows in the split, sorted by their first row.

    Example:
      >>> targets = Ragged.from_rows([[4, 7, 9], [5]])
      >>> rows = Rows(['a', 'b'], Ragged.from_rows([[1], [2]]), targets=targets)
      >>> rows = rows.with_positives(np.array([3, 2, 0]))
      >>> rows.user_id, [rows.positives[0].tolist(), rows.positives[1].tolist()]
      (['b', 'a'], [[5], [9, 4]])
      >>> rows.places[1].tolist(), rows.targets[1].tolist()
      ([1, 2], [4, 7, 9])
    """
    counts = self.targets.lengths
    user = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[part]
    first, positives, places = by_user(user, self.targets.values[part])
    users = self.take(user[first])
    if users.user_number is None:
      users = users._replace(user_number=user[first])
    return users._replace(positives=positives, places=places)


def taken(
  column: Sequence[str] | Ragged | np.ndarray | None, rows: np.ndarray
) -> Sequence[str] | Ragged | np.ndarray | None:
  """The cells of a column with these indices, in this order."""
  if isinstance(column, Ragged):
    return column.take(rows)
  if isinstance(column, np.ndarray):
    return column[rows]
  return None if column is None else [column[row] for row in rows]


def by_user(
  user: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, Ragged, Ragged]:
  """Groups the labelled rows of a ranking task by user.

  Args:
    user: number of the user of each row, int [rows].
    positive: positive of each row, int [rows].

  Returns:
    The first row of each user, ascending, int [users]; and for each user, in
    the same order, the positives and the row numbers of these.
  """
  _, first, of_row = np.unique(user, return_index=True, return_inverse=True)
  order = np.argsort(first)
  # Users are now numbered in the order of their first rows.
  of_row = np.argsort(order)[of_row]
  places = np.argsort(of_row, kind='stable')
  positives = Ragged.from_lengths(positive[places], np.bincount(of_row))
  places = Ragged(places.astype(np.int32), positives.offsets)
  return first[order], positives, places


def examples_of(
  rows: Rows, first: int = 0, end: int | None = None
) -> Iterator[Example]:
  """Yields the examples `first` to `end`; the key is the index of each."""
  columns = {
    name: column
    for name, column in rows._asdict().items()
    if column is not None
  }
  for row in range(len(rows.items))[first:end]:
    yield row, {name: column[row] for name, column in columns.items()}


def split_numbers(
  count: int, shares: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
  """Divides the numbers 0..count-1 among splits, shuffled."""
  order = np.random.default_rng(seed).permutation(count)
  ends = np.cumsum(list(shares.values()))[:-1] * count
  # 0.6 + 0.2 is only nearly 0.8; rounding must not move a row.
  parts = np.split(order, np.floor(ends + 1e-6).astype(int))
  return dict(zip(shares, parts, strict=True))


def split_users(user_id: Sequence[str], seed: int) -> dict[str, np.ndarray]:
  """Splits row numbers 60/20/20, with all rows of a user in one split.

  Example:
    >>> parts = split_users(['a', 'b', 'a', 'c', 'd', 'e'], 0)
    >>> {name: part.tolist() for name, part in parts.items()}
    {'train': [3, 5, 4], 'validation': [0, 2], 'test': [1]}
  """
  rows: dict[str, list[int]] = {}
  for row, user in enumerate(user_id):
    rows.setdefault(user, []).append(row)
  of_users = Ragged.from_rows([*rows.values()], np.int64)
  parts = split_numbers(len(rows), TASK_SHARES, seed)
  return {name: of_users.take(part).values for name, part in parts.items()}


def split_for(task: str, count: int) -> dict[str, np.ndarray]:
  """Splits row numbers, always in the same way.

  `pretrain` is split 90/10, other tasks 60/20/20 with another seed. With the
  same seed, the users held out in pre-training would all be test users, and
  validation would predict the test less well.
  """
  if task == 'pretrain':
    return split_numbers(count, {'train': 0.9, 'validation': 0.1}, seed=0)
  return split_numbers(count, TASK_SHARES, seed=_TASK_SEED)


def split_rows(
  rows: Rows, task: str, *, by_user: bool = False
) -> dict[str, Rows]:
  """Splits rows as `split_for` does, or users with all of their rows."""
  if by_user:
    parts = split_users(rows.user_id, seed=_TASK_SEED)
  else:
    parts = split_for(task, len(rows.items))
  return {name: rows.take(part) for name, part in parts.items()}


def split_positives(rows: Rows, *, by_user: bool = False) -> dict[str, Rows]:
  """Splits positives 60/20/20, or by user, with all positives of the user."""
  positives = Ragged(np.arange(len(rows.targets.values)), rows.targets.offsets)
  if by_user:
    users = split_for('ranking', len(positives))
    parts = {name: positives.take(part).values for name, part in users.items()}
  else:
    parts = split_for('ranking', len(positives.values))
  return {name: rows.with_positives(part) for name, part in parts.items()}


def check_rows(rows: Rows, vocabulary: Vocabulary, *, where: str) -> None:
  """Raises `DataError` for the first row that cannot be trained on."""
  check_count(len(rows.items), where=where)
  empty = np.flatnonzero(rows.items.lengths == 0)
  if len(empty):
    raise DataError(
      f'user {quote_cell(rows.user_id[empty[0]])} of the {where} has no '
      'behaviours; remove such users from the source'
    )
  _check_range(rows.items, rows, 'item', 1, len(vocabulary.items), where)
  last = len(vocabulary.labels) - 1
  if rows.label is not None:
    labels = Ragged(rows.label, np.arange(len(rows.label) + 1))
    _check_range(labels, rows, 'label', 0, last, where)
  if rows.targets is not None:
    _check_range(rows.targets, rows, 'target', 0, last, where)


def check_count(rows: int, *, where: str) -> None:
  """Raises `DataError` if a split has no rows."""
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
      f'{what} {column.values[bad[0]]} of user '
      f'{quote_cell(rows.user_id[row])} in the {where} is outside '
      f'{first}..{last}'
    )
