"""MovieLens viewers: sequences of rated films, with attributes and next films.

The protocol follows the tasks of the AdaptSSR paper, on data that anyone can
get. A viewer's ratings are put in order of time, ratings of the same second in
the order of the file. The history is all of them but the last ten; histories
are kept whole, and it is up to an encoder how many of the last films it reads.
A viewer of ten ratings or fewer has no history and is left out; neither data
set has one.

Films are numbered from 1 in the order of their first appearance in the
histories, viewer by viewer in the order of their numbers. Targets are numbered
from 0 likewise, apart from the items, over all target films of the task; a
target need not be in any history.

The protocol of published next-item recommendation is beside it, in
`movielens_leave_one_out`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.histories import (
  history_rows,
  in_order_of_time,
  number_names,
)
from adaptssr_jax.data.movielens_leave_one_out import (
  next_item_rows,
  sequence_rows,
  sequences_of,
)
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers import movielens_sources
from adaptssr_jax.data.readers.movielens_editions import EDITIONS, Edition
from adaptssr_jax.data.readers.movielens_files import Log, read
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
# MovieLens-1M has these groups only, so that the years of 100k become them.
_AGES = ('<18', '18-24', '25-34', '35-44', '45-49', '50-55', '56+')
_AGE_STARTS = (18, 25, 35, 45, 50, 56)
_KINDS = {
  'pretrain': 'pretrain',
  'gender': 'classification',
  'age': 'classification',
  'occupation': 'classification',
  'click': 'ranking',
  'thumb_up': 'ranking',
}


@dataclasses.dataclass(eq=False)
class MovielensConfig(TaskConfig):
  """A data set, a task, and how the task's rows are split.

  Args:
    edition: which of the two data sets.
    by_user: whether all positives of a user go to the same split.
    leaves_one_out: whether the last two films of a user are held out, one for
      validation and one for the test, rather than the last ten.
  """

  edition: Edition = EDITIONS['100k']
  by_user: bool = False
  leaves_one_out: bool = False


def _configs() -> list[MovielensConfig]:
  return [
    MovielensConfig(
      name=f'{size}_{task}_by_user' if by_user else f'{size}_{task}',
      description=f'MovieLens-{size}: {task}',
      task=task,
      kind=kind,
      edition=edition,
      by_user=by_user,
    )
    for size, edition in EDITIONS.items()
    for task, kind in _KINDS.items()
    for by_user in ((False, True) if kind == 'ranking' else (False,))
  ] + [
    MovielensConfig(
      name=f'{size}_leave_one_out_{task}',
      description=f'MovieLens-{size}, leave one out: {task}',
      task=task,
      kind=kind,
      edition=edition,
      leaves_one_out=True,
    )
    for size, edition in EDITIONS.items()
    for task, kind in (('pretrain', 'pretrain'), ('next_item', 'ranking'))
  ]


class MovielensUsers(UserBuilder):
  """MovieLens-100k and -1M: what a viewer rated, who it is, what comes next.

  `pretrain` deals the histories out 90/10, and `gender`, `age` and `occupation`
  60/20/20. `click` ranks a user's last ten films, and `thumb_up` those of them
  that were rated 4 or 5; the films of all users are dealt out 60/20/20, or the
  users where the name ends in `by_user`. All splits are drawn with fixed seeds.
  With `leave_one_out`, `next_item` ranks the last film of each user but two, in
  validation the last but one, and in the test the very last; `pretrain` has all
  before the last two.

  Cite Harper & Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015. GroupLens
  allows research use, and neither redistribution nor commercial use without
  permission.
  """

  BUILDER_CONFIGS = _configs()
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "GroupLens' ml-100k.zip or ml-1m.zip, as it is or unpacked. Only needed "
    'where GroupLens cannot be reached.'
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    config = self.builder_config
    source = movielens_sources.obtain(config.edition, dl_manager)
    log = read(source.path, source.layout)
    if config.leaves_one_out:
      sequences = sequences_of(log)
      self.info.metadata.update(
        source=source.origin, users_left_out=sequences.left_out
      )
      make = next_item_rows if config.kind == 'ranking' else sequence_rows
      return make(sequences)
    histories = split_off_last(log)
    self.info.metadata.update(
      source=source.origin, users_left_out=histories.left_out
    )
    if config.kind == 'ranking':
      return ranking_rows(
        histories, liked=config.task == 'thumb_up', by_user=config.by_user
      )
    return user_rows(histories, config.task, config.edition.occupations)


class Histories(NamedTuple):
  """The users' ratings, parted into histories and what came after.

  Args:
    log: all ratings; `history` and `last` are positions in it.
    user: user number of each row.
    history: a user's ratings but the last ten, oldest first.
    last: a user's last ten ratings, oldest first, [users, 10].
    left_out: how many users have no history.
  """

  log: Log
  user: np.ndarray
  history: Ragged
  last: np.ndarray
  left_out: int


def split_off_last(log: Log) -> Histories:
  """Orders each user's ratings in time and holds the last ten out."""
  user, ratings = in_order_of_time(log.user, log.time)
  kept = np.flatnonzero(ratings.lengths > _HELD_OUT)
  ratings = ratings.take(kept)
  last = ratings.offsets[1:, None] + np.arange(-_HELD_OUT, 0)
  in_history = np.ones(len(ratings.values), bool)
  in_history[last] = False
  return Histories(
    log=log,
    user=user[kept],
    history=Ragged.from_lengths(
      ratings.values[in_history], ratings.lengths - _HELD_OUT
    ),
    last=ratings.values[last],
    left_out=len(user) - len(kept),
  )


def user_rows(
  histories: Histories, task: str, occupations: Mapping[str, str]
) -> tuple[dict[str, Rows], Vocabulary]:
  """One row a user: the history, and a class unless pre-training.

  Args:
    task: `pretrain`, `gender`, `age` or `occupation`.
    occupations: the names of the classes, by how the source writes them.

  Returns:
    The splits and the vocabulary.

  Raises:
    DataError: a user has an unknown gender or occupation.
  """
  rows, items = _history_rows(histories)
  if task == 'pretrain':
    return split_rows(rows, task), Vocabulary(items)
  people = [histories.log.people[user] for user in histories.user]
  if task == 'age':
    ages = [person.age for person in people]
    label, names = np.searchsorted(_AGE_STARTS, ages, side='right'), _AGES
  else:
    classes = _GENDERS if task == 'gender' else occupations
    found = [getattr(person, task) for person in people]
    label = _look_up(found, list(classes), rows.user_id, task)
    names = tuple(classes.values())
  rows = rows._replace(label=label.astype(np.int32))
  return split_rows(rows, task), Vocabulary(items, names)


def ranking_rows(
  histories: Histories, *, liked: bool, by_user: bool
) -> tuple[dict[str, Rows], Vocabulary]:
  """The history of each user, and the films of the last ten to rank.

  Args:
    liked: only films that the user gave 4 or 5; a user without is left out.
    by_user: all films of a user go to the same split, else each to any.

  Returns:
    The splits and the vocabulary.
  """
  rows, items = _history_rows(histories)
  log = histories.log
  # A film that was rated twice is one target.
  targets = [
    list(
      dict.fromkeys(
        log.item[at] for at in last if not liked or log.rating[at] >= _LIKED
      )
    )
    for last in histories.last
  ]
  numbers, labels = number_names(name for names in targets for name in names)
  lengths = np.array([len(names) for names in targets], int)
  rows = rows._replace(targets=Ragged.from_lengths(numbers, lengths))
  rows = rows.take(np.flatnonzero(lengths))
  return split_positives(rows, by_user=by_user), Vocabulary(items, labels)


def _history_rows(histories: Histories) -> tuple[Rows, list[str]]:
  """The histories as rows, and the raw names of their items."""
  return history_rows(histories.user, histories.log.item, histories.history)


def _look_up(
  found: list[str], known: list[str], user_id: list[str], what: str
) -> np.ndarray:
  for user, name in zip(user_id, found, strict=True):
    if name not in known:
      raise DataError(
        f'{what} {name!r} of user {user} is none of {", ".join(known)}; '
        'download the data set again'
      )
  return np.array([known.index(name) for name in found])
