"""The Tencent Transfer Learning (TTL) data set, from its public archive.

Its five files go into the manual folder. A line of the pre-training file holds
the items of a user; in the other files the label or the targets follow:

    original_desen_pretrain.csv                  12,7,301
    original_desen_age.csv                       12,7,301,,4
    original_desen_lifestatus.csv                12,7,301,,2
    original_desen_finetune_click_nouserID.csv   12,7,301,,55,902
    original_desen_finetune_like_nouserID.csv    12,7,301,,55

The splits are those of the public reference implementation, row for row. As
there, items are numbered by first appearance in the pre-training file, and
labels and targets by first appearance in their own file; item 0 is padding and
is dropped. The `user_id` of a row is the number, from 1, of the last line of
the pre-training file that has the same behaviours. Lines with only zeros are
dropped, and their number is reported.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.readers.lines import Span
from adaptssr_jax.data.readers.ttl_lines import (
  PRETRAIN_FILE,
  last_lines,
  notes_of,
  read_lines,
  reference_split,
  rows_of,
  users_of,
)
from adaptssr_jax.data.rows import DataError, Rows, Vocabulary

_PRETRAIN_ENDS = {'train': 0.9, 'validation': 1.0}
_TASK_ENDS = {'train': 0.6, 'validation': 0.8, 'test': 1.0}


# {task: (kind, file, seed of the split in the reference code)}.
_TASKS = {
  'pretrain': ('pretrain', PRETRAIN_FILE, 2309),
  'age': ('classification', 'original_desen_age.csv', 1730),
  'life_status': ('classification', 'original_desen_lifestatus.csv', 1730),
  'click': ('ranking', 'original_desen_finetune_click_nouserID.csv', 1354),
  'thumb_up': ('ranking', 'original_desen_finetune_like_nouserID.csv', 1354),
}


class Ttl(UserBuilder):
  """Behaviours of QQ Browser users, and four tasks on them."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'Download the TTL data set (conure_data.zip; the README of '
    'github.com/yflyl613/AdaptSSR links to it), unpack it, and put the five '
    'original_desen_*.csv files into this folder.'
  )
  BUILDER_CONFIGS = tuple(
    TaskConfig(task=task, kind=kind) for task, (kind, *_) in _TASKS.items()
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    config = self.builder_config
    pretrain, task = self._paths(dl_manager)
    lines = read_lines(Span(pretrain), 'pretrain')
    item_ids, users = lines.item_ids, None
    dropped = [(str(pretrain), lines.dropped)]
    if task:
      users = last_lines([users_of(lines, item_ids)])
      lines = read_lines(Span(task), config.kind)
      dropped.append((str(task), lines.dropped))
    self.info.metadata['notes'] = notes_of(dropped)
    rows = rows_of(lines, item_ids, users, lines.tail_ids)
    take = rows.with_positives if config.kind == 'ranking' else rows.take
    parts = self._split(lines.num_rows)
    splits = {split: take(part) for split, part in parts.items()}
    return splits, Vocabulary(_texts(item_ids), _texts(lines.tail_ids))

  def _examples(
    self,
    dl_manager: tfds.download.DownloadManager,
    pipeline: Any,
    folder: pathlib.Path,
  ) -> dict[str, Any]:
    # Apache Beam need not be installed.
    from adaptssr_jax.data.readers.ttl_beam import ttl_examples

    config = self.builder_config
    pretrain, task = self._paths(dl_manager)
    return ttl_examples(
      pipeline,
      pretrain,
      task,
      kind=config.kind,
      folder=folder,
      split=self._split,
      source=self.info.metadata['source'],
    )

  @property
  def _split(self) -> Callable[[int], dict[str, np.ndarray]]:
    """Divides a number of rows among the splits."""
    task = self.builder_config.task
    ends = _PRETRAIN_ENDS if task == 'pretrain' else _TASK_ENDS
    return functools.partial(reference_split, ends=ends, seed=_TASKS[task][2])

  def _paths(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The pre-training file, and the file of the task if it is another one."""
    _, file, _ = _TASKS[self.builder_config.task]
    pretrain = self._path(dl_manager, PRETRAIN_FILE)
    if file == PRETRAIN_FILE:
      return pretrain, None
    return pretrain, self._path(dl_manager, file)

  def _path(
    self, dl_manager: tfds.download.DownloadManager, file: str
  ) -> pathlib.Path:
    try:
      folder = dl_manager.manual_dir
    except (AssertionError, OSError) as error:
      # The folder is missing or empty; the message of TFDS names it.
      raise DataError(f'{file} cannot be read: {error}') from None
    path = pathlib.Path(folder) / file
    if not path.is_file() or not path.stat().st_size:
      what = 'is empty' if path.is_file() else 'is missing'
      raise DataError(
        f'{file} in {folder} {what}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}'
      )
    self.info.metadata['source'] = str(path)
    return path


def _texts(ids: pa.Int64Array) -> list[str]:
  return list(map(str, ids.to_pylist()))
