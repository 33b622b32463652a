"""Summary statistics of a column of a comparison: means, intervals, tests.

All methods have the same test rows in each split. The values of a method are
first averaged over seeds, for each test row. Then users are resampled, each
with its rows in all splits, with the same resamples for all methods.
"""

import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptssr_jax import metrics
from experiments.comparison import significance
from experiments.comparison.methods import REFERENCE

# A resample of the AUC is slow: it takes a pass over the rows of each run.
_RESAMPLES = {'accuracy': 10_000, 'ndcg@10': 10_000, 'auc': 2_000}


class Outcome(NamedTuple):
  """The outcome of one cell of a comparison."""

  score: float  # the metric on the test rows
  split: int  # the seed of the split
  path: pathlib.Path  # the `predictions.npz` of the cell


def summarise(
  outcomes: Mapping[str, Sequence[Outcome]],
  metric: str,
  users: Mapping[int, Sequence[str]],
  *,
  reference: str = REFERENCE,
) -> dict[str, dict[str, Any]]:
  """Summarises a column of the table.

  Args:
    outcomes: of every method that can do the task.
    metric: 'accuracy', 'auc' or 'ndcg@10'.
    users: the user of each test row, for each split.

  Returns:
    For each method: `mean`; `std` over runs and standard `error`, None for a
    single run; the number of `runs`; and the 95 % `interval` of the mean over
    users. Compared with the reference: `improvement` in percent, `difference`,
    the 95 % `difference_interval`, `p`, `p_holm`, which is corrected for the
    number of rows, and the name of the `test`; None for the reference.
  """
  samples = dict(
    zip(outcomes, _resampled(outcomes, metric, users), strict=True)
  )
  scores = {
    name: np.array([outcome.score for outcome in runs])
    for name, runs in outcomes.items()
  }
  summary = {}
  for name in outcomes:
    summary[name] = _spread(scores[name], significance.interval(samples[name]))
    if name == reference or reference not in outcomes:
      continue
    mean, other = (float(scores[one].mean()) for one in (name, reference))
    differences = samples[name] - samples[reference]
    summary[name] |= {
      'improvement': 100 * (mean / other - 1) if other else None,
      'difference': mean - other,
      'difference_interval': [*map(float, significance.interval(differences))],
      'p': significance.p_value(differences),
      'test': 'bootstrap',
    } | _mcnemar(outcomes[name], outcomes[reference], metric)
  return _with_holm(summary)


def _spread(scores: np.ndarray, interval: Sequence[float]) -> dict[str, Any]:
  """The statistics of one method; those of a comparison are None."""
  several = len(scores) > 1
  std = float(scores.std(ddof=1)) if several else None
  compared = dict.fromkeys(
    ('improvement', 'difference', 'difference_interval', 'p', 'p_holm', 'test')
  )
  return {
    'mean': float(scores.mean()),
    'std': std,
    'error': std / math.sqrt(len(scores)) if several else None,
    'runs': len(scores),
    **compared,
    'interval': [*map(float, interval)],
  }


def _with_holm(summary: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """The summary with p values that are corrected for their number."""
  tested = [values for values in summary.values() if values['p'] is not None]
  corrected = significance.holm([values['p'] for values in tested])
  for values, p in zip(tested, corrected, strict=True):
    values['p_holm'] = p
  return summary


def _mcnemar(
  outcomes: Sequence[Outcome], reference: Sequence[Outcome], metric: str
) -> dict[str, Any]:
  """The exact test of accuracies, if there is a single run of each method."""
  if metric != 'accuracy' or len(outcomes) > 1 or len(reference) > 1:
    return {}
  first, second = (
    _read(outcome.path)['correct'] for outcome in (outcomes[0], reference[0])
  )
  return {'p': significance.mcnemar(first, second), 'test': 'McNemar'}


def _resampled(
  outcomes: Mapping[str, Sequence[Outcome]],
  metric: str,
  users: Mapping[int, Sequence[str]],
) -> np.ndarray:
  """The metric of each method on resamples, [methods, resamples]."""
  everybody, number = np.unique(
    np.concatenate(list(users.values())), return_inverse=True
  )
  ends = np.cumsum([len(named) for named in users.values()])[:-1]
  rows = dict(zip(users, np.split(number, ends), strict=True))
  if metric == 'auc':
    runs = [
      [(rows[run.split], _read(run.path)) for run in outcomes[name]]
      for name in outcomes
    ]
    statistic = functools.partial(_mean_auc, runs=runs)
  else:
    sums = [
      _sum_by_user(outcomes[name], metric, rows, len(everybody))
      for name in outcomes
    ]
    counts = sum(
      np.bincount(who, minlength=len(everybody)) for who in rows.values()
    )
    statistic = functools.partial(
      significance.weighted_means, sums=np.stack(sums, axis=1), counts=counts
    )
  return significance.bootstrap(
    statistic, len(everybody), resamples=_RESAMPLES[metric]
  ).T


def _sum_by_user(
  outcomes: Sequence[Outcome],
  metric: str,
  rows: Mapping[int, np.ndarray],
  num_users: int,
) -> np.ndarray:
  """The values of each user: their mean over seeds, and sum over rows."""
  sums = np.zeros(num_users)
  for split, who in rows.items():
    values = []
    for outcome in outcomes:
      if outcome.split == split:
        found = _read(outcome.path)
        values.append(
          found['correct'].astype(float)
          if metric == 'accuracy'
          else np.asarray(metrics.ndcg(found['rank'], k=10), float)
        )
    sums += np.bincount(who, np.mean(values, axis=0), minlength=num_users)
  return sums


def _mean_auc(
  weights: np.ndarray, *, runs: Sequence[Sequence[tuple[np.ndarray, Any]]]
) -> np.ndarray:
  """The AUC of each method, mean over its runs, [resamples, methods]."""
  return np.stack(
    [
      np.mean(
        [
          significance.weighted_auc(
            weights[:, who], found['score'], found['label']
          )
          for who, found in runs_of_method
        ],
        axis=0,
      )
      for runs_of_method in runs
    ],
    axis=1,
  )


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path) as found:
    return {name: found[name] for name in found.files}


def summarise_splits(
  outcomes: Mapping[str, Sequence[Outcome]],
  *,
  test_per_train: float,
  reference: str = REFERENCE,
) -> dict[str, dict[str, Any]]:
  """Summarises a column of the table by its splits.

  Args:
    outcomes: of every method that can do the task, on 2 splits or more.
    test_per_train: as in `significance.split_error`. All training rows are
      counted even if a column uses a share of them, which overlap less.

  Returns:
    As `summarise`, with splits in place of runs, and `by_split`: the metric in
    each split.
  """
  # The mean over the seeds of each split.
  by_split = {
    name: {
      split: float(np.mean([run.score for run in runs if run.split == split]))
      for split in dict.fromkeys(run.split for run in runs)
    }
    for name, runs in outcomes.items()
  }
  interval_of = functools.partial(
    significance.split_interval, test_per_train=test_per_train
  )
  summary, other = {}, by_split.get(reference, {})
  for name, found in by_split.items():
    scores = np.array(list(found.values()))
    named = {str(split): value for split, value in found.items()}
    summary[name] = _spread(scores, interval_of(scores)) | {'by_split': named}
    if name == reference or not other:
      continue
    differences = np.array(
      [value - other[split] for split, value in found.items()]
    )
    mean = float(np.mean(list(other.values())))
    difference = float(differences.mean())
    p = significance.split_test(differences, test_per_train=test_per_train)
    summary[name] |= {
      'improvement': 100 * difference / mean if mean else None,
      'difference': difference,
      'difference_interval': [*interval_of(differences)],
      'p': p,
      'test': 'corrected resampled t',
    }
  return _with_holm(summary)
