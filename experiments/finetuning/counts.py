"""Ranking by what training rows have: the popular, and what follows an item.

Counted are the positives of the training rows; and what their users did before,
each history once, where validation says that this helps. It does for a Markov
chain, which then sees every step of a sequence and not its last one alone; the
popular of years ago may not be those of now. No history goes on to a positive.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from adaptssr_jax.data import UserArrays, UserData
from experiments.finetuning.tasks import KINDS

# Rows that are ranked at once: a table of 256 x 100,000 scores is 200 MB.
_ROWS = 256


def rank_by_counts(
  data: UserData, *, last_item: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Ranks by how often a target is met in training, or met after an item.

  Where no count after the item tells two targets apart, how often they are met
  at all does.

  Args:
    last_item: whether the counts are those after a row's last item.

  Returns:
    Whether histories are counted too, as validation chose, and the ranks of
    validation and test [rows].
  """
  kind, best = KINDS[data.kind], None
  for histories in (False, True):
    score = _score_of(data, last_item=last_item, histories=histories)
    ranks = {
      name: ranks_of(data.splits[name], score)
      for name in ('validation', 'test')
    }
    values = kind.measure(ranks['validation'], data.splits['validation'].label)
    value = values[kind.select_by[0]]
    # Among equals the first, which is the simplest.
    if best is None or value > best[0]:
      best = value, {'histories': histories}, ranks
  _, chosen, ranks = best
  return chosen, ranks


def _score_of(
  data: UserData, *, last_item: bool, histories: bool
) -> Callable[[UserArrays, np.ndarray], np.ndarray]:
  """The counts as (users, some of them) -> [some, targets]."""
  befores, afters = _steps(data, histories)
  shape = (len(data.vocabulary.items) + 1, len(data.vocabulary.labels))
  popularity = np.bincount(afters, minlength=shape[1]).astype(float)
  if not last_item:
    return lambda users, some: np.tile(popularity, (len(some), 1))
  # How often a target follows an item: equal pairs add up.
  transitions = sparse.csr_matrix(
    (np.ones(len(afters)), (befores, afters)), shape
  )

  def score_after(users: UserArrays, some: np.ndarray) -> np.ndarray:
    """Counts after the last item; where they are equal, popularity decides."""
    after = transitions[_last_items(users, some)].toarray()
    return after + popularity / (popularity.sum() + 1)

  return score_after


def _blocks(count: int) -> Iterator[np.ndarray]:
  """The numbers 0..count-1, some at a time."""
  for start in range(0, count, _ROWS):
    yield np.arange(start, min(start + _ROWS, count))


def _last_items(users: UserArrays, some: np.ndarray) -> np.ndarray:
  return users.items.padded(some, 1)[:, 0]


def _steps(data: UserData, histories: bool) -> tuple[np.ndarray, np.ndarray]:
  """All steps of the training rows from an item to a target, [steps] each.

  From the last item of a row to its positive; and from each item of a history
  to the next, where that is a target. The first item has none before it: 0.
  """
  train = data.splits['train']
  number = {name: place for place, name in enumerate(data.vocabulary.labels)}
  # The target that is item i, -1 where it is none.
  target_of = np.array(
    [-1, *(number.get(name, -1) for name in data.vocabulary.items)]
  )
  befores = [_last_items(train, train.user_of_rows())]
  afters = [train.in_row_order(train.positives.values)]
  for some in _blocks(len(train.items)) if histories else ():
    items = train.items.padded(some, train.items.longest)
    before = np.pad(items[:, :-1], ((0, 0), (1, 0)))
    after = target_of[items]
    befores.append(before[after >= 0])
    afters.append(after[after >= 0])
  return np.concatenate(befores), np.concatenate(afters)


def ranks_of(
  users: UserArrays, score: Callable[[UserArrays, np.ndarray], np.ndarray]
) -> np.ndarray:
  """The rank of each row's positive among all targets, from 1, [rows].

  The user's other positives are left out, and equal scores share the mean of
  their ranks, as in fine-tuning.

  Args:
    score: (users, some of them) -> [some, targets].
  """
  of_row, ranks = users.user_of_rows(), []
  positive = users.in_row_order(users.positives.values)
  for rows in _blocks(users.num_rows):
    some = of_row[rows]
    scores = score(users, some)
    own = np.take_along_axis(scores, positive[rows, None], axis=1)
    targets = users.targets.padded(some, users.targets.longest, fill=-1)
    line, place = np.nonzero(targets >= 0)
    scores[line, targets[line, place]] = -np.inf
    above, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    ranks.append(1 + above + equal / 2)
  return np.concatenate(ranks).astype(np.float32)
