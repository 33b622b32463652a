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
import operator
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from adaptssr_jax.data import UserArrays, UserBuilder, UserData, resplit
from experiments.finetuning.predictions import write_result
from experiments.finetuning.tasks import KINDS
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import SELECT_BY
from experiments.probing.classifiers import (
  BAG_STRENGTHS,
  best_of,
  best_regression,
)
from experiments.probing.features import bag_svd, tf_idf
from experiments.probing.probe import (
  bags_of_rows,
  history_numbers,
  labelled_rows,
  outputs_of,
  probe_candidates,
  vectors_by_split,
)
from experiments.probing.rankings import blocks, ranks_of
from experiments.run.data import check_data, check_split_seed, open_data
from experiments.run.process import print_result_line
from experiments.run.workdir import opened_workdir

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
  builder = check_data(settings, settings.task)
  check_split_seed(settings)
  with opened_workdir(settings) as folder:
    return baseline_in(folder, settings, builder)


def baseline_in(
  folder: pathlib.Path, settings: BaselineSettings, builder: UserBuilder
) -> dict[str, Any]:
  """Fits the baseline in an open folder."""
  data = open_data(settings, settings.task, builder)
  data = resplit(data, settings.split_seed)
  rows = data.splits['train'].num_rows
  if settings.train_users > rows:
    raise SettingsError(
      f'--train_users={settings.train_users} is more than the {rows} training '
      f'rows of {settings.task}: take at most {rows}, or 0 for all'
    )
  train = data.splits['train'].first(settings.train_users)
  all_rows = data
  data = data._replace(splits=data.splits | {'train': train})
  methods = _METHODS['ranking' if data.kind == 'ranking' else 'labels']
  if settings.method not in methods:
    raise SettingsError(
      f'--method={settings.method} cannot do --task={settings.task}, which is '
      f'a {data.kind} task: take --method={" or ".join(methods)}'
    )
  if settings.method == 'bag_svd':
    chosen, outputs = probe_svd(
      all_rows,
      settings.max_length,
      num_components=settings.num_components or 64,
      train_users=settings.train_users,
    )
  elif data.kind == 'ranking':
    chosen, outputs = rank_by_counts(
      data, last_item=settings.method == 'last_item'
    )
  else:
    chosen, outputs = classify_bags(data, settings.max_length)
  about = {'task': settings.task, 'method': settings.method} | chosen
  result = write_result(folder, about, outputs, data)
  scores = (f'{name} {value:.4f}' for name, value in result['test'].items())
  print_result_line(f'{settings.method}, {settings.task}: {", ".join(scores)}')
  return result


def classify_bags(
  data: UserData, length: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Logistic regression on bags of items, binary or weighted by TF-IDF.

  Args:
    length: the number of last behaviours that are used; 0: all.

  Returns:
    The settings that validation chose, and the outputs for the validation and
    test rows.
  """
  labelled = labelled_rows(data)
  bag, results = bags_of_rows(data, length), []
  for weighting, strengths in _STRENGTHS.items():
    features = bag
    if weighting == 'tf_idf':
      features = tf_idf(bag, rows=labelled.rows['train'])
    found = best_regression(features, labelled, strengths=strengths)
    chosen = {'weighting': weighting} | found.chosen
    results.append(found._replace(chosen=chosen))
  best = best_of(results)
  return best.chosen, outputs_of(best, data)


def probe_svd(
  data: UserData, length: int, *, num_components: int, train_users: int = 0
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """As `classify_bags`, on a truncated SVD of the bags of all users.

  In a ranking, the regression is that of `ranking_candidates`. A user who is in
  several splits contributes one bag to the SVD.

  Args:
    train_users: the number of first labelled rows to train on; 0: all.
  """
  bag = bags_of_rows(data, length)
  _, first, place = np.unique(
    history_numbers(data), return_index=True, return_inverse=True
  )
  once = bag_svd(tf_idf(bag[first]), num_components=num_components)
  vectors = once[place]
  chosen = {'num_components': vectors.shape[1]}
  by_split = vectors_by_split(vectors, data)
  train = data.splits['train'].first(train_users)
  by_split['train'] = by_split['train'][: len(train.items)]
  data = data._replace(splits=data.splits | {'train': train})
  best = best_of(probe_candidates(by_split, data))
  return chosen | best.chosen, outputs_of(best, data)


def rank_by_counts(
  data: UserData, *, last_item: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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
    {'histories': whether histories are counted}, and the ranks for the
    validation and test rows, [rows].
  """
  kind, found = KINDS[data.kind], []
  for histories in (False, True):
    score = _score_of(data, last_item=last_item, histories=histories)
    ranks = {
      name: ranks_of(
        data.splits[name], functools.partial(score, data.splits[name])
      )
      for name in ('validation', 'test')
    }
    values = kind.measure(ranks['validation'], data.splits['validation'].label)
    found.append(
      (values[SELECT_BY[data.kind][0]], {'histories': histories}, ranks)
    )
  # Among equals the first is taken, which is simpler.
  _, chosen, ranks = max(found, key=operator.itemgetter(0))
  return chosen, ranks


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
