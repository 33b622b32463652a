"""Ranking by what training rows have: the popular, and what follows an item."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from adaptssr_jax.data import UserArrays, UserData

# Rows that are ranked at once: a table of 256 x 100,000 scores is 200 MB.
_ROWS = 256


def rank_by_counts(
  data: UserData, *, last_item: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Ranks by how often training rows have a target, or have it after an item.

  Args:
    data: a ranking task.
    last_item: whether the counts are those after a row's last item.

  Returns:
    Nothing that was chosen, and the ranks of validation and test [rows].
  """
  train, targets = data.splits['train'], len(data.vocabulary.labels)
  positives = np.concatenate(
    [_targets(train, rows)[:, 0] for rows in _blocks(train)]
  )
  counts = np.bincount(positives, minlength=targets).astype(float)
  if last_item:
    score = functools.partial(
      _score_after,
      popularity=counts,
      transitions=_transitions(train, positives, data),
    )
  else:
    score = functools.partial(_score_popular, popularity=counts)
  return {}, {
    name: ranks_of(data.splits[name], score) for name in ('validation', 'test')
  }


def _targets(users: UserArrays, rows: np.ndarray) -> np.ndarray:
  """The positive of each row, then the others, then -1: [rows, longest]."""
  return users.targets.padded(rows, users.targets.longest, fill=-1)


def _blocks(users: UserArrays) -> Iterator[np.ndarray]:
  """The numbers of the rows, some at a time."""
  for start in range(0, len(users.items), _ROWS):
    yield np.arange(start, min(start + _ROWS, len(users.items)))


def _last_items(users: UserArrays, rows: np.ndarray) -> np.ndarray:
  return users.items.padded(rows, 1)[:, 0]


def _transitions(
  users: UserArrays, positives: np.ndarray, data: UserData
) -> Any:
  """How often a row whose last item is i has target t, [items + 1, targets]."""
  from scipy import sparse

  last = _last_items(users, np.arange(len(users.items)))
  shape = (len(data.vocabulary.items) + 1, len(data.vocabulary.labels))
  ones = np.ones(len(last))
  return sparse.csr_matrix((ones, (last, positives)), shape)


def _score_popular(
  users: UserArrays, rows: np.ndarray, *, popularity: np.ndarray
) -> np.ndarray:
  del users
  return np.tile(popularity, (len(rows), 1))


def _score_after(
  users: UserArrays,
  rows: np.ndarray,
  *,
  popularity: np.ndarray,
  transitions: Any,
) -> np.ndarray:
  """Counts after the last item; where they are equal, popularity decides."""
  after = transitions[_last_items(users, rows)].toarray()
  return after + popularity / (popularity.sum() + 1)


def ranks_of(
  users: UserArrays, score: Callable[[UserArrays, np.ndarray], np.ndarray]
) -> np.ndarray:
  """The rank of each row's positive among all targets, from 1.

  The user's other positives are left out, and equal scores share the mean of
  their ranks, as in fine-tuning.

  Args:
    users: the rows.
    score: (users, rows) -> [rows, targets].

  Returns:
    [rows].
  """
  ranks = []
  for rows in _blocks(users):
    scores, targets = score(users, rows), _targets(users, rows)
    own = np.take_along_axis(scores, targets[:, :1], axis=1)
    line, place = np.nonzero(targets[:, 1:] >= 0)
    scores[line, targets[line, place + 1]] = -np.inf
    above, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    ranks.append(1 + above + (equal - 1) / 2)
  return np.concatenate(ranks).astype(np.float32)
