"""What many random splits say of the methods of a column.

Every method has the same splits. What is compared are its numbers on them, the
mean over its seeds on each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison import significance
from experiments.comparison.methods import REFERENCE
from experiments.comparison.summary import Outcome, spread, with_holm


def summarise_splits(
  outcomes: Mapping[str, Sequence[Outcome]],
  *,
  test_per_train: float,
  reference: str = REFERENCE,
) -> dict[str, dict[str, Any]]:
  """Summarises a column of the table by its splits.

  Args:
    outcomes: of every method that can do the task, on 2 splits or more.
    test_per_train: test rows of a split for each of its training rows, all of
      them, though a column may learn from a share: fewer training rows overlap
      less, not more.
    reference: the method that the others are compared with, if it is there.

  Returns:
    As `summary.summarise`, over splits in place of runs, and `by_split`: the
    number of each split.
  """
  by_split = {name: _by_split(runs) for name, runs in outcomes.items()}
  summary = {}
  for name, found in by_split.items():
    scores = np.array(list(found.values()))
    interval = significance.split_interval(
      scores, test_per_train=test_per_train
    )
    summary[name] = spread(scores) | {
      'interval': list(interval),
      'by_split': {str(split): score for split, score in found.items()},
    }
  for name in summary:
    if reference in summary and name != reference:
      summary[name] |= _compared(
        by_split[name], by_split[reference], test_per_train
      )
  return with_holm(summary)


def _by_split(outcomes: Sequence[Outcome]) -> dict[int, float]:
  """The mean of each split over its seeds."""
  splits = dict.fromkeys(outcome.split for outcome in outcomes)
  return {
    split: float(np.mean([run.score for run in outcomes if run.split == split]))
    for split in splits
  }


def _compared(
  scores: Mapping[int, float],
  reference: Mapping[int, float],
  test_per_train: float,
) -> dict[str, Any]:
  differences = np.array(
    [score - reference[split] for split, score in scores.items()]
  )
  mean = float(np.mean(list(reference.values())))
  difference = float(differences.mean())
  interval = significance.split_interval(
    differences, test_per_train=test_per_train
  )
  return {
    'improvement': 100 * difference / mean if mean else None,
    'difference': difference,
    'difference_interval': list(interval),
    'p': significance.split_test(differences, test_per_train=test_per_train),
    'test': 'corrected resampled t',
  }
