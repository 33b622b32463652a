"""The base class of the data sets of this package.

A data set reads its source into one `Rows` per split and a `Vocabulary`. This
module checks them and writes them as a TensorFlow Datasets builder does, in
ArrayRecord files of the examples

    {'user_id': text, 'items': int32 [n]}                        pretrain
    {'user_id': text, 'items': int32 [n], 'label': int32}        classification
    {'user_id': text, 'items': int32 [n], 'label': 0 or 1}       conversion
    {'user_id': text, 'items': int32 [n], 'targets': int32 [k],
     'positives': int32 [p], 'places': int32 [p],
     'user_number': int32}                                       ranking

with the oldest behaviour first, items numbered from 1, and labels and targets
from 0. In a conversion task 1 is the event to predict, which is usually rare.

In a ranking task an example is a user, and a labelled row is a pair of a user
and one positive. `positives` are the targets of the user in this split.
`targets` must not be drawn as negatives: they are the positives of all splits,
and with leave-one-out also the history. `places` are the numbers of the user's
rows in the shuffled order of the split, and users are sorted by their first
row. A user is in every split that has positives of the user, with the same
`user_number`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.beam import errors_left_in
from adaptssr_jax.data.rows import (
  COLUMNS,
  NUMBERS,
  Example,
  Kind,
  Rows,
  Vocabulary,
  check_rows,
  examples_of,
  ignore_progress,
)

# Rows of a file; TFDS holds one file in memory.
_SHARD = 262_144


@dataclasses.dataclass(eq=False)
class TaskConfig(tfds.core.BuilderConfig):
  """One task on one data set.

  Args:
    name: by default it is made of the size, the split and the task.
    task: `pretrain` for sequences without labels.
    kind: determines the columns of an example.
    size: the size of the data set, if it has several.
    split: how the data set is split, if that is not its usual way.
  """

  name: str = ''
  task: str = 'pretrain'
  kind: Kind = 'pretrain'
  size: str = ''
  split: str = ''

  def __post_init__(self) -> None:
    parts = filter(None, (self.size, self.split, self.task))
    self.name = self.name or '_'.join(parts)
    if self.kind == 'ranking':
      # In version 1 an example was a pair of a user and a positive.
      self.version = '2.0.0'


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Does nothing: TFDS hosts no such data and would leave a folder behind."""


class UserBuilder(
  tfds.core.ShardBasedBuilder,
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,
):
  """A data set of users; a subclass reads the source."""

  VERSION = tfds.core.Version('1.0.0')
  # `prepare` sets these two, which change no example.
  beam_options: Sequence[str] | None = None
  on_progress: Callable[[str], None] = staticmethod(ignore_progress)

  @abc.abstractmethod
  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    """Reads the splits and the vocabulary from the source."""

  def _info(self) -> tfds.core.DatasetInfo:
    numbers = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    features = {'user_id': tfds.features.Text(), 'items': numbers}
    for name in COLUMNS[self.builder_config.kind]:
      features[name] = np.int32 if name in NUMBERS else numbers
    return _Info(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _download_and_prepare(
    self,
    dl_manager: tfds.download.DownloadManager,
    download_config: tfds.download.DownloadConfig,
  ) -> None:
    if self.beam_options is None or not hasattr(self, '_examples'):
      # The other base class would sort the rows, which are in order already, in
      # memory, and beyond a gigabyte it needs TensorFlow.
      tfds.core.ShardBasedBuilder._download_and_prepare(
        self, dl_manager, download_config
      )
      return
    folder = pathlib.Path(self.data_dir_root)
    with errors_left_in(folder):
      tfds.core.GeneratorBasedBuilder._download_and_prepare(
        self, dl_manager, download_config
      )
    # The pipeline has written these in addition to the examples.
    for name in ('items', 'labels', 'notes'):
      path = folder / f'{name}.json'
      self.info.metadata[name] = (
        json.loads(path.read_text()) if path.exists() else []
      )

  def _shard_iterators_per_split(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, list[Callable[[], Iterator[Example]]]]:
    splits, vocabulary = self._read(dl_manager)
    source = self.info.metadata.get('source')
    for split, rows in splits.items():
      where = f'{split} split' + (f' of {source}' if source else '')
      check_rows(rows, vocabulary, where=where)
    self.info.metadata.update(
      items=list(vocabulary.items), labels=list(vocabulary.labels)
    )
    self.info.metadata.setdefault('notes', [])
    return {
      split: [
        functools.partial(examples_of, rows, first, first + _SHARD)
        for first in range(0, len(rows.items), _SHARD)
      ]
      for split, rows in splits.items()
    }

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager, pipeline: Any
  ) -> dict[str, Any]:
    return self._examples(
      dl_manager, pipeline, pathlib.Path(self.data_dir_root)
    )

  _generate_examples = staticmethod(examples_of)

  def _log_download_bytes(self) -> None:
    """Does nothing: TFDS would print the temporary folder."""

  _log_download_done = _log_download_bytes
