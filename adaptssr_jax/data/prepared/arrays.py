"""Prepared data sets as memory-mapped arrays.

The ArrayRecord files of a builder are converted once to flat columns next to
them. Then a data set of any size opens at once, and takes only the memory of
the pages that are read.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from adaptssr_jax.data.builder import UserBuilder
from adaptssr_jax.data.prepare import ARRAYS, is_prepared, prepare
from adaptssr_jax.data.prepared.columns import open_columns
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import (
  TASK_SHARES,
  Kind,
  Vocabulary,
  by_user,
  ignore_progress,
  split_numbers,
  split_users,
  taken,
)

# Stored columns, without those that depend on the split of a ranking task.
_STORED = ('user_id', 'items', 'targets', 'label', 'user_number')


class UserArrays(NamedTuple):
  """The examples of one split, as columns that may be memory-mapped.

  The columns are those of `rows.Rows`, the user ids as UTF-8 bytes, and three
  more. A labelled row is an example, and in a ranking task a pair of a user and
  one of its positives. A column that the kind of task does not have is None.

  Args:
    number: an id of each labelled row, int64 [rows], that is the same in every
      split of every seed; None unless `resplit` was called.
    by_last_item: the result of `batches.by_last_item`; None unless batches need
      `partner_items`. `take` drops it.
    similar_items: the similar items of each id, int32 [ids, k], as from
      `data.similar_items`; None unless batches need them.
  """

  user_id: Ragged
  items: Ragged
  label: np.ndarray | None = None
  targets: Ragged | None = None
  positives: Ragged | None = None
  places: Ragged | None = None
  user_number: np.ndarray | None = None
  number: np.ndarray | None = None
  by_last_item: Ragged | None = None
  similar_items: np.ndarray | None = None

  @property
  def num_rows(self) -> int:
    """The number of labelled rows."""
    if self.places is None:
      return len(self.items)
    return len(self.places.values)

  def take(self, numbers: np.ndarray) -> UserArrays:
    """A copy of the labelled rows with these numbers, in this order."""
    examples, lists = numbers, {}
    if self.places is not None:
      users = self.user_of_rows()[numbers]
      positive = self.in_row_order(self.positives.values)[numbers]
      first, positives, places = by_user(self.user_number[users], positive)
      examples = users[first]
      lists = {'positives': positives, 'places': places}
    columns = {name: taken(getattr(self, name), examples) for name in _STORED}
    return UserArrays(
      **columns | lists,
      number=taken(self.number, numbers),
      similar_items=self.similar_items,
    )

  def first(self, rows: int) -> UserArrays:
    """A copy of the first labelled rows; all rows themselves if `rows` is 0."""
    return self.take(np.arange(self.num_rows)[:rows]) if rows else self

  def user_ids(self, users: np.ndarray) -> list[str]:
    """The raw user ids of the examples with these indices."""
    return [self.user_id[user].tobytes().decode() for user in users]

  def user_of_rows(self) -> np.ndarray:
    """The index of the example of each labelled row, int [rows]."""
    users = np.arange(len(self.items))
    if self.places is None:
      return users
    return self.in_row_order(np.repeat(users, self.places.lengths))

  def in_row_order(self, values: np.ndarray) -> np.ndarray:
    """Reorders [rows, ...], given in `positives.values` order, to row order."""
    ordered = np.empty_like(values)
    ordered[self.places.values] = values
    return ordered


class UserData(NamedTuple):
  """A prepared data set.

  Args:
    name: names the builder, its config and its version.
    splits: {name: split}.
    vocabulary: of all splits.
    kind: the kind of the task, which determines the columns.
  """

  name: str
  splits: dict[str, UserArrays]
  vocabulary: Vocabulary
  kind: Kind = 'pretrain'


def load(
  builder: UserBuilder,
  *,
  manual_dir: str | None = None,
  beam_options: Sequence[str] | None = None,
  on_progress: Callable[[str], None] = ignore_progress,
) -> UserData:
  """Opens a data set, after preparing it if necessary.

  Any number of processes may do so at the same time; see `prepare`.

  Args:
    builder: the data set, from `tfds.builder(name, data_dir=...)`.
    manual_dir: as for `prepare`, like the remaining arguments.

  Raises:
    DataError: the source cannot be found or read, or Beam is not installed.
  """
  if not is_prepared(builder):
    prepare(
      builder,
      manual_dir=manual_dir,
      beam_options=beam_options,
      on_progress=on_progress,
    )
  if not builder.info.initialized:
    builder.info.read_from_directory(builder.data_dir)
  folder = pathlib.Path(builder.data_dir) / ARRAYS
  metadata = builder.info.metadata
  kind = builder.builder_config.kind
  return UserData(
    name=builder.info.full_name,
    splits={
      split: UserArrays(**open_columns(folder / split, kind))
      for split in builder.info.splits
    },
    vocabulary=Vocabulary(metadata['items'], metadata['labels']),
    kind=kind,
  )


def resplit(users: UserData, seed: int) -> UserData:
  """Splits the labelled rows of a task again, 60/20/20, and numbers them.

  A row has the same number for every seed. In a conversion task, where a user
  may have several rows, each with its own history, all rows of a user go to the
  same split.

  Args:
    seed: seed of the order of the rows; 0 keeps the stored splits. Others copy
      the columns into memory.

  Returns:
    The data set with new splits `train`, `validation` and `test`.
  """
  ends = np.cumsum([split.num_rows for split in users.splits.values()])
  numbered = {
    name: split._replace(number=np.arange(end - split.num_rows, end))
    for (name, split), end in zip(users.splits.items(), ends, strict=True)
  }
  if seed == 0:
    return users._replace(splits=numbered)
  pool = _concatenate([*numbered.values()])
  if users.kind == 'conversion':
    every = pool.user_ids(np.arange(pool.num_rows))
    parts = split_users(every, seed)
  else:
    parts = split_numbers(pool.num_rows, TASK_SHARES, seed)
  return users._replace(
    splits={name: pool.take(numbers) for name, numbers in parts.items()}
  )


def _concatenate(splits: Sequence[UserArrays]) -> UserArrays:
  """The rows of all splits; a user of a ranking may be several examples."""
  columns = {}
  for name in (*_STORED, 'positives', 'places', 'number'):
    parts = [getattr(split, name) for split in splits]
    if isinstance(parts[0], Ragged):
      columns[name] = Ragged.concatenate(parts)
    elif parts[0] is not None:
      columns[name] = np.concatenate(parts)
  pool = UserArrays(**columns)
  if pool.places is None:
    return pool
  # Places count the rows of one split, and numbers those of all splits.
  places = [split.number[split.places.values] for split in splits]
  return pool._replace(
    places=Ragged(np.concatenate(places), pool.places.offsets)
  )
