"""What every data set of this package has in common.

A data set reads its source into `Rows`, one for each split, and a `Vocabulary`.
This module checks them and writes them as a TensorFlow Datasets builder does:
ArrayRecord files of the examples

    {'user_id': text, 'items': int32 [n]}                        pretrain
    {'user_id': text, 'items': int32 [n], 'label': int32}        classification
    {'user_id': text, 'items': int32 [n], 'label': 0 or 1}       conversion
    {'user_id': text, 'items': int32 [n], 'targets': int32 [k]}  ranking

oldest behaviour first, items counted from 1, labels and targets from 0. In a
conversion task 1 is the event that is looked for, rare as a rule. In a ranking
task a row is one (user, positive) pair: `targets[0]` is that positive, and the
rest are the user's other positives, which a ranking leaves out.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.ragged import Ragged

Kind = Literal['pretrain', 'classification', 'conversion', 'ranking']

TASK_SHARES = {'train': 0.6, 'validation': 0.2, 'test': 0.2}


class DataError(ValueError):
  """The data cannot be used; the message says where, why and what to do."""


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


def split_rows(
  rows: Rows, shares: Mapping[str, float], seed: int
) -> dict[str, Rows]:
  """Shuffles the rows and deals them out, the last split taking the rest."""
  parts = deal_out(len(rows.items), shares, seed)
  return {name: rows.take(part) for name, part in parts.items()}


def deal_out(
  count: int, shares: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
  """The numbers 0..count-1 of each split, shuffled."""
  order = np.random.default_rng(seed).permutation(count)
  ends = np.cumsum(list(shares.values()))[:-1] * count
  # 0.6 + 0.2 is 0.8 only up to rounding, and must not cost the split a row.
  parts = np.split(order, np.floor(ends + 1e-6).astype(int))
  return dict(zip(shares, parts, strict=True))


def split_for_pretraining(rows: Rows) -> dict[str, Rows]:
  """Deals rows out 90/10, always in the same way."""
  return split_rows(rows, {'train': 0.9, 'validation': 0.1}, seed=0)


def split_for_task(rows: Rows) -> dict[str, Rows]:
  """Deals rows out 60/20/20, always in the same way.

  Not by the permutation of pre-training: the users that it held out would all
  be test users here, and validation would tell less of the test.
  """
  return split_rows(rows, TASK_SHARES, seed=1)


def one_row_a_positive(rows: Rows) -> Rows:
  """Repeats each row for each of its targets, which comes first in its row.

  Example:
    >>> targets = Ragged.from_rows([[4, 7, 9], [5]])
    >>> rows = Rows(['a', 'b'], Ragged.from_rows([[1], [2]]), targets=targets)
    >>> targets = one_row_a_positive(rows).targets
    >>> [targets[row].tolist() for row in range(4)]
    [[4, 7, 9], [7, 4, 9], [9, 4, 7], [5]]
  """
  counts = rows.targets.lengths
  repeated = rows.take(np.repeat(np.arange(len(counts)), counts))
  targets = repeated.targets
  # Where the positive of each row was, and where each value will be.
  own = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
  own = np.repeat(own, targets.lengths)
  begin = np.repeat(targets.offsets[:-1], targets.lengths)
  place = np.arange(len(targets.values)) - begin
  source = np.where(place == 0, own, place - (place <= own))
  moved = Ragged(targets.values[begin + source], targets.offsets)
  return repeated._replace(targets=moved)


@dataclasses.dataclass(eq=False)
class TaskConfig(tfds.core.BuilderConfig):
  """One task on one data set.

  Args:
    task: its name, `pretrain` for the sequences alone.
    kind: what an example holds beside the sequence.
  """

  task: str = 'pretrain'
  kind: Kind = 'pretrain'


class UserBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A data set of users; a subclass says how its source is read."""

  VERSION = tfds.core.Version('1.0.0')

  @abc.abstractmethod
  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    """The splits and the vocabulary, read from the source."""

  def _info(self) -> tfds.core.DatasetInfo:
    features: dict[str, Any] = {
      'user_id': tfds.features.Text(),
      'items': tfds.features.Tensor(shape=(None,), dtype=np.int32),
    }
    if self.builder_config.kind in ('classification', 'conversion'):
      features['label'] = np.int32
    if self.builder_config.kind == 'ranking':
      features['targets'] = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    splits, vocabulary = self._read(dl_manager)
    for split, rows in splits.items():
      check_rows(rows, vocabulary, self.builder_config.kind, where=split)
    self.info.metadata.update(
      items=list(vocabulary.items), labels=list(vocabulary.labels)
    )
    return {
      split: self._generate_examples(rows) for split, rows in splits.items()
    }

  def _generate_examples(
    self, rows: Rows
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in range(len(rows.items)):
      example = {'user_id': rows.user_id[row], 'items': rows.items[row]}
      if rows.label is not None:
        example['label'] = rows.label[row]
      if rows.targets is not None:
        example['targets'] = rows.targets[row]
      yield row, example


def check_rows(
  rows: Rows, vocabulary: Vocabulary, kind: Kind, *, where: str
) -> None:
  """Raises `DataError` at the first row that no model could be trained on."""
  if not len(rows.items):
    raise DataError(
      f'the {where} split has no users; the data set is empty or too small to '
      'be split: give it more users'
    )
  empty = np.flatnonzero(rows.items.lengths == 0)
  if len(empty):
    raise DataError(
      f'user {rows.user_id[empty[0]]!r} of the {where} split has no '
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


def _check_range(
  column: Ragged, rows: Rows, what: str, first: int, last: int, where: str
) -> None:
  bad = np.flatnonzero((column.values < first) | (column.values > last))
  if len(bad):
    row = np.searchsorted(column.offsets, bad[0], side='right') - 1
    raise DataError(
      f'{what} {column.values[bad[0]]} of user {rows.user_id[row]!r} in the '
      f'{where} split is outside {first}..{last}'
    )
