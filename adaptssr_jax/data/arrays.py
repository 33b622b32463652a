"""Prepared data sets as memory-mapped arrays.

The ArrayRecord files of a builder are read once into flat columns beside them;
from then on a data set of any size opens at once and costs no memory but the
pages that are touched.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import (
  TASK_SHARES,
  Kind,
  UserBuilder,
  Vocabulary,
  deal_out,
)
from adaptssr_jax.data.ragged import Ragged, RaggedView

# How many examples are decoded before they are appended to the columns.
_BLOCK = 8192


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


def load(builder: UserBuilder, *, manual_dir: str | None = None) -> UserData:
  """Prepares a data set, unless it already is, and opens it.

  Args:
    builder: what to open, as `tfds.builder(name, data_dir=...)` gives it.
    manual_dir: the folder of files that the user has to provide.

  Returns:
    Its splits and vocabulary.

  Raises:
    DataError: the source cannot be had or read.
  """
  builder.download_and_prepare(
    file_format='array_record',
    download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir, try_download_gcs=False
    ),
  )
  folder = pathlib.Path(builder.data_dir) / 'arrays'
  if not folder.exists():
    _write_columns(builder, folder)
  metadata = builder.info.metadata
  return UserData(
    name=builder.info.full_name,
    splits={split: _open(folder / split) for split in builder.info.splits},
    vocabulary=Vocabulary(metadata['items'], metadata['labels']),
    kind=builder.builder_config.kind,
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


def _write_columns(builder: UserBuilder, folder: pathlib.Path) -> None:
  # Written aside and renamed: a half-written folder is never taken for whole.
  scratch = folder.with_name(f'{folder.name}.{os.getpid()}')
  scratch.mkdir()
  try:
    for split in builder.info.splits:
      (scratch / split).mkdir()
      source = builder.as_data_source(split=split)
      for start in range(0, len(source), _BLOCK):
        block = range(start, min(start + _BLOCK, len(source)))
        # Ten times as fast as one example after the other.
        examples = source.__getitems__(list(block))
        _append(examples, scratch / split)
    # Where another process was faster, its folder is as good.
    if not folder.exists():
      scratch.rename(folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _append(examples: list[dict], folder: pathlib.Path) -> None:
  """Appends examples to the columns of a split: raw arrays without header."""
  for name in examples[0]:
    cells = [example[name] for example in examples]
    if name == 'user_id':
      cells = [np.frombuffer(cell, np.uint8) for cell in cells]
    if name != 'label':
      lengths = np.array([len(cell) for cell in cells], np.int64)
      _append_to(folder / f'{name}.lengths', lengths)
      cells = np.concatenate(cells)
    # TFDS gives a label as a Python int, which alone would become an int64.
    dtype = np.uint8 if name == 'user_id' else np.int32
    _append_to(folder / name, np.asarray(cells, dtype))


def _append_to(path: pathlib.Path, values: np.ndarray) -> None:
  with path.open('ab') as file:
    values.tofile(file)


def _open(folder: pathlib.Path) -> UserArrays:
  return UserArrays(
    user_id=_open_ragged(folder / 'user_id', np.uint8),
    items=_open_ragged(folder / 'items', np.int32),
    label=_open_flat(folder / 'label', np.int32),
    targets=_open_ragged(folder / 'targets', np.int32),
  )


def _open_ragged(path: pathlib.Path, dtype: type) -> Ragged | None:
  values = _open_flat(path, dtype)
  if values is None:
    return None
  lengths = np.fromfile(f'{path}.lengths', np.int64)
  return Ragged.from_lengths(values, lengths)


def _open_flat(path: pathlib.Path, dtype: type) -> np.ndarray | None:
  return np.memmap(path, dtype, mode='r') if path.exists() else None
