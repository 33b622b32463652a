"""Prepared data sets as memory-mapped arrays.

The ArrayRecord files of a builder are read once into flat columns beside them;
from then on a data set of any size opens at once and costs no memory but the
pages that are touched.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from adaptssr_jax.data.builder import UserBuilder
from adaptssr_jax.data.prepare import ARRAYS, is_prepared, prepare
from adaptssr_jax.data.prepared.columns import open_columns
from adaptssr_jax.data.ragged import Ragged, RaggedView
from adaptssr_jax.data.rows import TASK_SHARES, Kind, Vocabulary, deal_out


class UserArrays(NamedTuple):
  """The examples of one split, as read-only memory-mapped columns.

  Args:
    user_id: the raw user ids as UTF-8 bytes.
    items: the behaviours of each row, item numbers from 1, oldest first.
    label: class of each row, int32 [rows]; None unless classification or
      conversion.
    targets: the row's positive, then the user's others; None unless ranking.
    number: of each row among those of all splits, int64 [rows], whatever split
      it is dealt to; None if the splits were never numbered.
    positives: of each example, those of its rows; see `groups.group_rows`.
    rows: of each example, the numbers of the rows that it was made of.
  """

  user_id: Ragged | RaggedView
  items: Ragged | RaggedView
  label: np.ndarray | None = None
  targets: Ragged | RaggedView | None = None
  number: np.ndarray | None = None
  positives: Ragged | None = None
  rows: Ragged | None = None

  def first(self, rows: int) -> UserArrays:
    """The first rows, or all of them if `rows` is 0."""
    end = rows or len(self.items)
    return UserArrays(*(_first(column, end) for column in self))

  def user_ids(self, rows: np.ndarray) -> list[str]:
    """The raw user ids of these rows."""
    return [self.user_id[row].tobytes().decode() for row in rows]


class UserData(NamedTuple):
  """A prepared data set.

  Args:
    name: of the builder, its config and its version.
    splits: by name.
    vocabulary: of all splits.
    kind: what a row holds beside the behaviours.
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
  tell: Callable[[str], None] | None = None,
) -> UserData:
  """Prepares a data set, unless it already is, and opens it.

  Any number of processes may do so at once: see `prepare`.

  Args:
    builder: what to open, as `tfds.builder(name, data_dir=...)` gives it.
    manual_dir: the folder of files that the user has to provide.
    beam_options: flags of the Apache Beam pipeline that prepares it, such as
      '--runner=FlinkRunner'; None prepares it in this process.

  Returns:
    Its splits and vocabulary.
    tell: is told what takes time: preparing, or waiting for who does.

  Raises:
    DataError: the source cannot be had or read, or Beam is not installed.
  """
  if not is_prepared(builder):
    prepare(
      builder, manual_dir=manual_dir, beam_options=beam_options, tell=tell
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
  """Deals the rows of a task out anew, 60/20/20, and numbers them.

  No row is copied: the new splits read the stored ones. A row keeps its number
  in every split of every seed.

  Args:
    users: with the stored splits.
    seed: of the order in which rows are dealt out; 0 keeps the stored splits.

  Returns:
    The data set with other splits: `train`, `validation` and `test`.
  """
  pool = list(users.splits.values())
  ends = np.cumsum([len(split.items) for split in pool])
  if seed == 0:
    return users._replace(
      splits={
        name: split._replace(number=np.arange(end - len(split.items), end))
        for (name, split), end in zip(users.splits.items(), ends, strict=True)
      }
    )
  parts = deal_out(int(ends[-1]), TASK_SHARES, seed)
  return users._replace(
    splits={name: _pick(pool, numbers) for name, numbers in parts.items()}
  )


def _first(
  column: Ragged | RaggedView | np.ndarray | None, end: int
) -> Ragged | RaggedView | np.ndarray | None:
  if isinstance(column, Ragged | RaggedView):
    return column.first(end)
  return None if column is None else column[:end]


def _pick(pool: list[UserArrays], numbers: np.ndarray) -> UserArrays:
  """The rows with these numbers, counted through all splits of the pool."""
  columns = {
    name: tuple(getattr(split, name) for split in pool)
    for name in ('user_id', 'items', 'targets')
  }
  label = None
  if pool[0].label is not None:
    label = np.concatenate([split.label for split in pool])[numbers]
  return UserArrays(
    label=label,
    number=numbers,
    **{
      name: None if parts[0] is None else RaggedView(parts, numbers)
      for name, parts in columns.items()
    },
  )
