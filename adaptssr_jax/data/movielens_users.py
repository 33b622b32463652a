"""MovieLens users: sequences of rated films, with attributes and next films.

The ratings of a user are sorted by time, ratings of the same second in the
order of the file. Histories are not truncated; an encoder chooses how many of
the last films it reads. Films are numbered from 1 in the order of their first
appearance in the histories, user by user in the order of their numbers.

The tasks follow those of the AdaptSSR paper, on public data: the history is all
but the last ten ratings. Users with ten ratings or fewer would be left out;
neither data set has any. Targets are numbered from 0 by first appearance, and
separately from items: a target need not be in any history.

Next-item recommendation uses the usual leave-one-out protocol. The last film of
each user is the test target and the one before it the validation target, each
predicted from all earlier films; pre-training uses all but these two. Items and
targets are the same films, so that target t is item t + 1, and films of the
user's history are left out of the ranking.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.histories import (
  Log,
  history_rows,
  hold_out,
  in_order_of_time,
  number_names,
)
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.movielens_files import EDITIONS, Edition, read
from adaptssr_jax.data.readers.sources import find_file
from adaptssr_jax.data.rows import (
  DataError,
  Rows,
  Vocabulary,
  split_positives,
  split_rows,
)

_HELD_OUT = 10
_LIKED = 4
_GENDERS = {'F': 'female', 'M': 'male'}
# The age groups of MovieLens-1M, into which the ages of 100k are grouped, too.
_AGES = ('<18', '18-24', '25-34', '35-44', '45-49', '50-55', '56+')
_AGE_STARTS = (18, 25, 35, 45, 50, 56)
# {split: {task: kind}}.
_KINDS = {
  '': {
    'pretrain': 'pretrain',
    'gender': 'classification',
    'age': 'classification',
    'occupation': 'classification',
    'click': 'ranking',
    'thumb_up': 'ranking',
    'click_by_user': 'ranking',
    'thumb_up_by_user': 'ranking',
  },
  'leave_one_out': {'pretrain': 'pretrain', 'next_item': 'ranking'},
}
# Leave one out: {split: number of films after the history}.
_AFTER = {'train': 3, 'validation': 2, 'test': 1}
# The smallest number of films that leaves a history in each split.
_LEAST = 4


class MovielensUsers(UserBuilder):
  """MovieLens-100k and -1M: rated films, user attributes and next films.

  `pretrain` splits the histories 90/10, and `gender`, `age` and `occupation`
  60/20/20. `click` ranks a user's last ten films, and `thumb_up` those of them
  that were rated 4 or 5; the films of all users are split 60/20/20, or the
  users if the name ends in `by_user`. All splits are drawn with fixed seeds.
  With `leave_one_out`, `next_item` ranks one film of each user: the third from
  last in training, the second from last in validation, and the last in the
  test; `pretrain` has all films before the last two.

  Cite Harper & Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015. GroupLens
  allows research use, and neither redistribution nor commercial use without
  permission.
  """

  BUILDER_CONFIGS = tuple(
    TaskConfig(task=task, kind=kind, size=size, split=split)
    for size in EDITIONS
    for split, kinds in _KINDS.items()
    for task, kind in kinds.items()
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "GroupLens' ml-100k.zip or ml-1m.zip, as it is or unpacked. Only needed "
    'where GroupLens cannot be reached.'
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    config = self.builder_config
    edition = EDITIONS[config.size]
    path = find_file(
      edition.package,
      dl_manager,
      own=edition.names,
      url=edition.url,
      sha256=self.url_infos[edition.url].checksum,
    )
    log = read(path, edition)
    if config.split == 'leave_one_out':
      splits, vocabulary, left_out = leave_one_out_rows(log, config.task)
    else:
      splits, vocabulary, left_out = last_ten_rows(log, config.task, edition)
    self.info.metadata.update(source=str(path), users_left_out=left_out)
    return splits, vocabulary


def last_ten_rows(
  log: Log, task: str, edition: Edition
) -> tuple[dict[str, Rows], Vocabulary, int]:
  """Histories without the last ten films, with the labels of a task.

  Args:
    task: `pretrain`, an attribute of users, or a ranking task.
    edition: provides the names of the occupations.

  Returns:
    The splits, the vocabulary, and the number of users without a history.

  Raises:
    DataError: a user has an unknown gender or occupation.
  """
  item, rating = log.behaviours['item'], log.behaviours['rating'].to_numpy()
  user, ratings = in_order_of_time(log.behaviours)
  kept = np.flatnonzero(ratings.lengths > _HELD_OUT)
  history, last = hold_out(ratings.take(kept), _HELD_OUT)
  rows, items = history_rows(user[kept], item, history)
  left_out = len(user) - len(kept)
  if task == 'pretrain':
    return split_rows(rows, task), Vocabulary(items), left_out
  if task in log.users.column_names:
    row = pc.index_in(pa.array(user[kept]), value_set=log.users['user'])
    found = log.users[task].take(row).to_pylist()
    label, names = _classes(found, rows.user_id, task, edition)
    rows = rows._replace(label=label)
    return split_rows(rows, task), Vocabulary(items, names), left_out
  is_target = rating[last] >= (_LIKED if 'thumb_up' in task else 0)
  numbers, labels = number_names(item, last[is_target])
  row = np.flatnonzero(is_target) // _HELD_OUT
  # A film that was rated twice is one target.
  _, once = np.unique(row * len(labels) + numbers, return_index=True)
  once.sort()
  lengths = np.bincount(row[once], minlength=len(last))
  targets = Ragged.from_lengths(numbers[once], lengths)
  rows = rows._replace(targets=targets).take(np.flatnonzero(lengths))
  splits = split_positives(rows, by_user=task.endswith('by_user'))
  return splits, Vocabulary(items, labels), left_out


def _classes(
  found: list, user_id: list[str], task: str, edition: Edition
) -> tuple[np.ndarray, tuple[str, ...]]:
  """The class of each user, int32, and the names of the classes."""
  if task == 'age':
    label = np.searchsorted(_AGE_STARTS, found, side='right')
    return label.astype(np.int32), _AGES
  classes = _GENDERS if task == 'gender' else edition.occupations
  for user, name in zip(user_id, found, strict=True):
    if name not in classes:
      raise DataError(
        f'{task} {name!r} of user {user} is not one of {", ".join(classes)}; '
        'download the data set again'
      )
  known = list(classes)
  label = np.array([known.index(name) for name in found], np.int32)
  return label, tuple(classes.values())


def leave_one_out_rows(
  log: Log, task: str
) -> tuple[dict[str, Rows], Vocabulary, int]:
  """Histories without the last films, with the next film as the target.

  For pre-training, validation has the same users with one more film, so that it
  can measure how well this film, the last one of each row, is predicted. An
  objective that uses all films of a row is validated on its training data.

  Args:
    task: `pretrain` or `next_item`.

  Returns:
    The splits, the vocabulary, and the number of users with fewer than four
    films.
  """
  user, ratings = in_order_of_time(log.behaviours)
  rows, names = history_rows(user, log.behaviours['item'], ratings)
  kept = np.flatnonzero(ratings.lengths >= _LEAST)
  # Otherwise the first training rows would be those of the oldest accounts.
  rows = rows.take(np.random.default_rng(0).permutation(kept))
  left_out = len(user) - len(kept)
  if task == 'next_item':
    splits = {name: _next_item(rows, after) for name, after in _AFTER.items()}
    return splits, Vocabulary(names, names), left_out
  splits = {
    name: rows._replace(items=hold_out(rows.items, last)[0])
    for name, last in (('train', 2), ('validation', 1))
  }
  return splits, Vocabulary(names), left_out


def _next_item(rows: Rows, after: int) -> Rows:
  """Histories without the last `after` films, of which the first is ranked."""
  items, held = hold_out(rows.items, after)
  targets = []
  for row, positive in enumerate(held[:, 0]):
    history = np.unique(items[row])
    # A positive that is also in the history is ranked nevertheless.
    others = history[history != positive]
    targets.append(np.append(positive, others) - 1)
  targets = Ragged.from_rows(targets)
  # The first target of each user is its positive.
  rows = rows._replace(items=items, targets=targets)
  return rows.with_positives(targets.offsets[:-1])
