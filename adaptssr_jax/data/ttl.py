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
behaviours, here `user_id`, counted from 1.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.beam import for_each
from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.pieces import Pieces
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.ttl_lines import Numbering, read_blocks
from adaptssr_jax.data.readers.ttl_pieces import number_lines
from adaptssr_jax.data.readers.ttl_rows import (
  PRETRAIN_FILE,
  check_known,
  digest,
  reference_split,
  user_ids,
  with_tails,
)
from adaptssr_jax.data.rows import DataError, Rows, Vocabulary


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
    pretrain_path = self._path(dl_manager, PRETRAIN_FILE)
    path = self._path(dl_manager, config.file)
    if config.task == 'pretrain':
      return _read_pretrain(path, config.seed)
    return _read_task(pretrain_path, path, config)

  def _pieces(
    self, dl_manager: tfds.download.DownloadManager, folder: pathlib.Path
  ) -> Pieces:
    config = self.builder_config
    pretrain = config.task == 'pretrain'
    return number_lines(
      self._path(dl_manager, PRETRAIN_FILE),
      None if pretrain else self._path(dl_manager, config.file),
      kind=config.kind,
      split=functools.partial(
        reference_split,
        ends=_PRETRAIN_ENDS if pretrain else _TASK_ENDS,
        seed=config.seed,
      ),
      run=functools.partial(for_each, options=self.beam_options),
      folder=folder,
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
  path: pathlib.Path, seed: int
) -> tuple[dict[str, Rows], Vocabulary]:
  numbering = Numbering()
  blocks = [
    Ragged(numbering.add(block.items.values), block.items.offsets)
    for block in read_blocks(path, 'pretrain')
  ]
  items = _join(blocks)
  rows = Rows([str(line) for line in range(1, len(items) + 1)], items)
  parts = reference_split(len(items), _PRETRAIN_ENDS, seed)
  splits = {split: rows.take(part) for split, part in parts.items()}
  return splits, Vocabulary(numbering.names())


def _read_task(
  pretrain_path: pathlib.Path, path: pathlib.Path, config: TtlConfig
) -> tuple[dict[str, Rows], Vocabulary]:
  items, lines = _read_users(pretrain_path)
  labels = Numbering()
  user_id, blocks, tail_blocks = [], [], []
  for block in read_blocks(path, config.kind):
    numbers = Ragged(items.find(block.items.values), block.items.offsets)
    check_known(path, block.first_line, block.items, numbers)
    user_id += user_ids(path, block.first_line, numbers, lines)
    blocks.append(numbers)
    targets = labels.add(block.tails.values) - np.int32(1)
    tail_blocks.append(Ragged(targets, block.tails.offsets))
  del lines
  tails = _join(tail_blocks)
  rows = with_tails(Rows(user_id, _join(blocks)), tails, config.kind)
  take = rows.with_positives if config.kind == 'ranking' else rows.take
  parts = reference_split(len(tails.values), _TASK_ENDS, config.seed)
  splits = {split: take(part) for split, part in parts.items()}
  return splits, Vocabulary(items.names(), labels.names())


def _join(blocks: list[Ragged]) -> Ragged:
  """All rows as one; empties the list, to hold no block twice."""
  lengths = np.concatenate([block.lengths for block in blocks])
  values = np.empty(lengths.sum(), np.int32)
  end = len(values)
  while blocks:
    part = blocks.pop().values
    values[end - len(part) : end] = part
    end -= len(part)
  return Ragged.from_lengths(values, lengths)


def _read_users(path: pathlib.Path) -> tuple[Numbering, dict[bytes, str]]:
  """The item numbers, and the last line that has each sequence."""
  numbering, lines = Numbering(), {}
  for block in read_blocks(path, 'pretrain'):
    items = Ragged(numbering.add(block.items.values), block.items.offsets)
    for row in range(len(items)):
      lines[digest(items[row])] = str(block.first_line + row)
  return numbering, lines
