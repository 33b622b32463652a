"""The Tencent Transfer Learning (TTL) data set, from its public archive.

Its five files go into the manual folder. A line of the pre-training file is a
user's items; in the other files the label or the target items follow them:

    original_desen_pretrain.csv                  12,7,301
    original_desen_age.csv                       12,7,301,,4
    original_desen_lifestatus.csv                12,7,301,,2
    original_desen_finetune_click_nouserID.csv   12,7,301,,55,902
    original_desen_finetune_like_nouserID.csv    12,7,301,,55

As in the public reference implementation, whose splits these are, row for row:
items are numbered over the pre-training file and labels and targets over
their own, in the order they first appear; item 0 is padding and dropped; and a
user is known by the last line of the pre-training file that has the same
behaviours, here `user_id`, counted from 1. A line that has no other items than
zeros is dropped, and noted.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.readers.ttl_lines import Lines, Numbering, read_lines
from adaptssr_jax.data.readers.ttl_rows import (
  PRETRAIN_FILE,
  check_known,
  dropped_note,
  names_of,
  no_such_user,
  reference_split,
  with_digests,
  with_tails,
)
from adaptssr_jax.data.rows import DataError, Kind, Rows, Vocabulary


@dataclasses.dataclass(eq=False)
class TtlConfig(TaskConfig):
  """A task of the archive.

  Args:
    file: where it is.
    seed: of the reference's split.
  """

  file: str = PRETRAIN_FILE
  seed: int = 2309


class Ttl(UserBuilder):
  """Behaviours of QQ Browser users, and four tasks on them."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'Download the TTL data set (conure_data.zip; the README of '
    'github.com/yflyl613/AdaptSSR links to it), unpack it, and put the five '
    'original_desen_*.csv files into this folder.'
  )
  BUILDER_CONFIGS = (
    TtlConfig(name='pretrain', description='The sequences alone.'),
    TtlConfig(
      name='age',
      description='The age group of a user.',
      task='age',
      kind='classification',
      file='original_desen_age.csv',
      seed=1730,
    ),
    TtlConfig(
      name='life_status',
      description='The life status of a user.',
      task='life_status',
      kind='classification',
      file='original_desen_lifestatus.csv',
      seed=1730,
    ),
    TtlConfig(
      name='click',
      description='The items a user clicks on elsewhere.',
      task='click',
      kind='ranking',
      file='original_desen_finetune_click_nouserID.csv',
      seed=1354,
    ),
    TtlConfig(
      name='thumb_up',
      description='The items a user gives a thumb-up elsewhere.',
      task='thumb_up',
      kind='ranking',
      file='original_desen_finetune_like_nouserID.csv',
      seed=1354,
    ),
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    config = self.builder_config
    pretrain = self._path(dl_manager, PRETRAIN_FILE)
    path = self._path(dl_manager, config.file)
    notes = []
    if config.task == 'pretrain':
      made = _read_pretrain(path, config.seed, notes)
    else:
      made = _read_task(pretrain, path, config, notes)
    self.info.metadata['notes'] = notes
    return made

  def _examples(
    self,
    dl_manager: tfds.download.DownloadManager,
    pipeline: Any,
    folder: pathlib.Path,
  ) -> dict[str, Any]:
    # Apache Beam need not be installed.
    from adaptssr_jax.data.readers.ttl_beam import ttl_examples

    config = self.builder_config
    pretrain = self._path(dl_manager, PRETRAIN_FILE)
    path = self._path(dl_manager, config.file)
    is_task = config.task != 'pretrain'
    ends = _TASK_ENDS if is_task else _PRETRAIN_ENDS
    return ttl_examples(
      pipeline,
      pretrain,
      path if is_task else None,
      kind=config.kind,
      folder=folder,
      split=functools.partial(reference_split, ends=ends, seed=config.seed),
      splits=tuple(ends),
      source=str(path),
    )

  def _path(
    self, dl_manager: tfds.download.DownloadManager, file: str
  ) -> pathlib.Path:
    try:
      folder = dl_manager.manual_dir
    except (AssertionError, OSError) as error:
      # No such folder, or nothing in it: TFDS says which and what to do.
      raise DataError(f'{file} cannot be read: {error}') from None
    path = pathlib.Path(folder) / file
    if not path.is_file():
      raise DataError(
        f'there is no {file} in {folder}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}'
      )
    self.info.metadata['source'] = str(path)
    if not path.stat().st_size:
      raise DataError(
        f'{file} in {folder} is empty. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}'
      )
    return path


_PRETRAIN_ENDS = {'train': 0.9, 'validation': 1.0}
_TASK_ENDS = {'train': 0.6, 'validation': 0.8, 'test': 1.0}


def _read_pretrain(
  path: pathlib.Path, seed: int, notes: list[str]
) -> tuple[dict[str, Rows], Vocabulary]:
  numbering, user_id = Numbering(), []
  for lines in _read_lines(path, 'pretrain', notes):
    user_id += map(str, lines.number.tolist())
    numbering.append(lines.items)
  items, item_ids = numbering.finish()
  rows = Rows(user_id, items)
  parts = reference_split(len(user_id), _PRETRAIN_ENDS, seed)
  splits = {split: rows.take(part) for split, part in parts.items()}
  return splits, Vocabulary(names_of(item_ids))


def _read_task(
  pretrain: pathlib.Path,
  path: pathlib.Path,
  config: TtlConfig,
  notes: list[str],
) -> tuple[dict[str, Rows], Vocabulary]:
  item_ids, users, lines = [], [], []
  for part in _read_lines(pretrain, 'pretrain', notes):
    item_ids.append(pa.array(part.items.values).unique())
    users.append(with_digests(part))
  item_ids = pa.chunked_array(item_ids).unique()
  items, labels = Numbering(item_ids), Numbering()
  for part in _read_lines(path, config.kind, notes):
    lines.append(with_digests(part))
    items.append(part.items)
    labels.append(part.tails)
  users, lines = map(pa.Table.from_batches, (users, lines))
  items, every_id = items.finish()
  unknown = np.arange(len(every_id)) >= len(item_ids)
  check_known(path, lines['line'].to_numpy(), items, every_id, unknown)
  user_ids = _user_ids(path, users, lines)
  tails, label_ids = labels.finish()
  # Labels and targets count from 0.
  tails.values[:] -= 1
  rows = with_tails(Rows(user_ids, items), tails, config.kind)
  take = rows.take
  if config.kind == 'ranking':
    number = lines['line'].to_numpy().astype(np.int32) - 1
    take = rows._replace(user_number=number).with_positives
  parts = reference_split(len(tails.values), _TASK_ENDS, config.seed)
  splits = {split: take(part) for split, part in parts.items()}
  return splits, Vocabulary(names_of(item_ids), names_of(label_ids))


def _read_lines(
  path: pathlib.Path, kind: Kind, notes: list[str]
) -> Iterator[Lines]:
  """All lines of a file; notes how many of them are dropped."""
  dropped = []
  for lines in read_lines(path, kind):
    dropped += lines.dropped.tolist()
    yield lines
  if dropped:
    notes.append(dropped_note(path, len(dropped), dropped[0]))


def _user_ids(
  path: pathlib.Path, users: pa.Table, lines: pa.Table
) -> list[str]:
  """The user of each line: the last line of pre-training with its digest."""
  # Of several, the first is found: in this order, the last.
  backwards = users[::-1]
  place = pc.index_in(lines['digest'], value_set=backwards['digest'])
  missing = pc.index(place.is_valid(), False).as_py()
  if missing >= 0:
    raise no_such_user(path, lines['line'][missing].as_py())
  return names_of(backwards['line'].take(place))
