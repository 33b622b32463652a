"""Solves a task by a simple baseline, without a user model.

  python -m experiments.baselines --method=bag_of_items --task=gender

bag_of_items   labels: logistic regression on the set of a user's items
bag_svd        regression on a truncated SVD of the TF-IDF bags of items
most_popular   rankings: targets are ranked by their counts in training rows
last_item      rankings: a Markov chain, counts of targets after the last item

It writes `result.json` and `predictions.npz`, as `experiments.finetune` does.
"""

from experiments.flags.small_commands import BaselineSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.baselines', BaselineSettings)

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from adaptssr_jax.data import UserArrays, UserData
from experiments.finetuning.data import open_rows, with_first_rows
from experiments.finetuning.predictions import write_result
from experiments.flags.binder import SettingsError
from experiments.probing.classifiers import (
  BAG_STRENGTHS,
  ProbeResult,
  best_of,
  candidates,
  scored,
)
from experiments.probing.features import bag_svd, bags, tf_idf
from experiments.probing.probe import (
  bags_by_split,
  distinct_users,
  probe_candidates,
)
from experiments.probing.rankings import blocks, ranks_of
from experiments.run.process import print_result_line
from experiments.run.workdir import opened_workdir, refuse_other_run

# The methods that regress on bags of items.
BAGS = ('bag_of_items', 'bag_svd')
_METHODS = {
  'labels': BAGS,
  'ranking': ('most_popular', 'last_item', 'bag_svd'),
}
# Inverse strengths of the penalty, the strongest first, for binary bags and for
# bags of unit length.
_STRENGTHS = {'binary': (0.001, 0.01, 0.1, 1.0), 'tf_idf': BAG_STRENGTHS}


def main(settings: BaselineSettings) -> dict[str, Any]:
  """Fits the baseline, and returns the content of `result.json`."""
  if settings.num_components and settings.method != 'bag_svd':
    raise SettingsError(
      f'--num_components is for --method=bag_svd, not {settings.method}: leave '
      'it out'
    )
  is_default = settings.max_length == BaselineSettings.max_length
  if settings.method not in BAGS and not is_default:
    raise SettingsError(
      f'--max_length is for bags of items, not --method={settings.method}: '
      'leave it out'
    )
  # Before the task, which may take long to prepare.
  refuse_other_run(settings, '')
  data = open_rows(settings)
  methods = _METHODS['ranking' if data.kind == 'ranking' else 'labels']
  if settings.method not in methods:
    raise SettingsError(
      f'--method={settings.method} cannot do --task={settings.task}, which is '
      f'a {data.kind} task: take --method={" or ".join(methods)}'
    )
  with opened_workdir(settings) as folder:
    return baseline_in(folder, settings, data)


def baseline_in(
  folder: pathlib.Path, settings: BaselineSettings, data: UserData
) -> dict[str, Any]:
  """Fits the baseline in an open folder."""
  known = with_first_rows(data, settings.train_users)
  if settings.method == 'bag_svd':
    best = probe_svd(
      data,
      known,
      settings.max_length,
      num_components=settings.num_components or 64,
    )
  elif data.kind == 'ranking':
    best = rank_by_counts(known, last_item=settings.method == 'last_item')
  else:
    best = classify_bags(known, settings.max_length)
  about = {'task': settings.task, 'method': settings.method} | best.chosen
  result = write_result(folder, about, best.outputs, known)
  scores = (f'{name} {value:.4f}' for name, value in result['test'].items())
  print_result_line(f'{settings.method}, {settings.task}: {", ".join(scores)}')
  return result


def classify_bags(data: UserData, length: int) -> ProbeResult:
  """Logistic regression on bags of items, binary or weighted by TF-IDF.

  Args:
    length: the number of last behaviours that are used; 0: all.

  Returns:
    The result that is best on validation rows.
  """
  return best_of(_bag_candidates(data, length))


def _bag_candidates(data: UserData, length: int) -> Iterator[ProbeResult]:
  bag = bags_by_split(data, max_length=length)
  weighted = {
    name: tf_idf(part, counted=bag['train']) for name, part in bag.items()
  }
  for weighting, features in (('binary', bag), ('tf_idf', weighted)):
    strengths = _STRENGTHS[weighting]
    for found in candidates(features, data, strengths=strengths):
      chosen = {'weighting': weighting} | found.chosen
      yield found._replace(chosen=chosen)


def probe_svd(
  data: UserData, known: UserData, length: int, *, num_components: int
) -> ProbeResult:
  """As `classify_bags`, on a truncated SVD of the bags of all users.

  In a ranking, the regression is that of `ranking_candidates`. A user who is in
  several splits contributes one bag to the SVD.

  Args:
    data: the task with all rows.
    known: the same, with only the training rows that are used.
  """
  users, places = distinct_users(data)
  bag = bags(users.items, len(data.vocabulary.items), max_length=length)
  found = bag_svd(tf_idf(bag), num_components=num_components)
  vectors = {
    name: found[places[name][: len(part.items)]]
    for name, part in known.splits.items()
  }
  best = best_of(probe_candidates(vectors, known))
  chosen = {'num_components': found.shape[1]} | best.chosen
  return best._replace(chosen=chosen)


def rank_by_counts(data: UserData, *, last_item: bool) -> ProbeResult:
  """Ranks targets by their counts, overall or after the user's last item.

  The positives of the training rows are counted. The items in the histories of
  these users are counted too, each history once, if that is better on
  validation rows. This helps the Markov chain, which then uses every transition
  of a sequence, not only the last one; it may hurt popularity, which changes
  over the years. The transition from a history to its positive is counted with
  the positive only. Targets with equal counts after the item are ordered by
  overall counts.

  Args:
    data: the ranking task.
    last_item: whether to count targets after the last item of a row.

  Returns:
    The better result, whose `chosen` says whether histories are counted.
  """
  results = []
  for histories in (False, True):
    score = _score_of(data, last_item=last_item, histories=histories)
    ranks = {
      name: ranks_of(
        data.splits[name], functools.partial(score, data.splits[name])
      )
      for name in ('validation', 'test')
    }
    results.append(scored({'histories': histories}, ranks, data))
  return best_of(results)


def _score_of(
  data: UserData, *, last_item: bool, histories: bool
) -> Callable[[UserArrays, np.ndarray], np.ndarray]:
  """Returns (users, user numbers [block]) -> scores [block, targets]."""
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
    """Counts after the last item; popularity decides between equal counts."""
    after = transitions[_last_items(users, some)].toarray()
    return after + popularity / (popularity.sum() + 1)

  return score_after


def _last_items(users: UserArrays, some: np.ndarray) -> np.ndarray:
  return users.items.padded(some, 1)[:, 0]


def _steps(data: UserData, histories: bool) -> tuple[np.ndarray, np.ndarray]:
  """All transitions of the training rows: items and next targets, [steps] each.

  These are the last item of a row with its positive and, with `histories`, each
  item of a history with the next one if that is a target. The item before the
  first one is 0.
  """
  train = data.splits['train']
  number = {name: place for place, name in enumerate(data.vocabulary.labels)}
  # The target that equals item i, or -1.
  target_of = np.array(
    [-1, *(number.get(name, -1) for name in data.vocabulary.items)]
  )
  befores = [_last_items(train, train.user_of_rows())]
  afters = [train.in_row_order(train.positives.values)]
  for some in blocks(len(train.items)) if histories else ():
    items = train.items.padded(some, train.items.longest)
    before = np.pad(items[:, :-1], ((0, 0), (1, 0)))
    after = target_of[items]
    befores.append(before[after >= 0])
    afters.append(after[after >= 0])
  return np.concatenate(befores), np.concatenate(afters)
