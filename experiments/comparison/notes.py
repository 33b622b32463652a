"""How to read the tables of a comparison."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.comparison.commands import LONGEST
from experiments.comparison.grid import Grid, collapse_of
from experiments.comparison.methods import FINE_TUNED
from experiments.comparison.table import DASH, LEVEL, MARK


def notes(grid: Grid, results: Mapping[str, Any]) -> str:
  """What the numbers are, and what they came from, as a list in Markdown."""
  title = results['titles'].get(grid.reference, grid.reference)
  lines = [
    'Metrics in percent on test rows, mean ± standard error: the standard '
    'deviation over runs or splits by the root of their number, which is too '
    'small, since splits overlap. Best in bold; '
    f'{DASH} where a method cannot do the task, or is no model to train.',
    f'{MARK}: p < {LEVEL} in a two-sided paired test against {title}, after '
    "Holm's correction for the other rows of the column. A column in which "
    'that row has no number is not tested.',
  ]
  if any(FINE_TUNED in grid.modes_of(task) for task in grid.tasks):
    lines += _of_fine_tuning(grid, results, title)
  if grid.histories:
    lines += _of_frozen(grid)
  lines += [
    f'Pre-trained with {len(grid.pretrain_seeds)} of the {len(grid.seeds)} '
    f'seeds. Steps of each stage: {_ranges(grid, results["pretraining"])}.',
    f'Commit {", ".join(results["commits"])}; on '
    f'{", ".join(results["devices"])}; '
    + ', '.join(f'{name} {of}' for name, of in results['versions'].items())
    + '.',
  ]
  lines += _collapsed(grid, results['pretraining'])
  return ''.join(f'- {line}\n' for line in lines)


def _of_fine_tuning(
  grid: Grid, results: Mapping[str, Any], title: str
) -> list[str]:
  return [
    f'Fine-tuned: {len(grid.runs())} of {len(grid.seeds)} seeds and '
    f'{len(grid.splits)} splits; a baseline has no seed. Impr: percent over '
    f'{title}. The test is a bootstrap over test users, each with all of its '
    'rows and the mean over its seeds; for accuracy in a single run '
    "McNemar's exact test. Intervals are of the same bootstrap: they tell of "
    'the choice of users, not of that of the seeds.',
    'Updates of fine-tuning up to the epoch that validated best: '
    f'{_ranges(grid, results["cells"], "best_step")}. On a share of the labels '
    f'there are as many times more epochs, at most {LONGEST} times.',
  ]


def _of_frozen(grid: Grid) -> list[str]:
  """Of the columns in which vectors are read."""
  number = len(grid.probe_splits)
  lines = [
    'Frozen: logistic regression on standardised vectors of the encoder as '
    'pre-training left it, C by validation; + bag: on them and the TF-IDF bag '
    'of the whole history, whose weight validation chooses too. Labels are '
    'dealt out anew '
    f'in each of {number} splits. A share of the labels is one of those to '
    'train on; the validation rows are all there. Document frequencies and the '
    'SVD, which need no label, are of all rows.',
    'Frozen: the tests compare the encoders at hand, pre-trained with '
    f'{len(grid.pretrain_seeds)} seed'
    f'{"s" if len(grid.pretrain_seeds) > 1 else ""}: they tell of the choice '
    'of labelled and tested users, not of that of the seed.',
  ]
  if number > 1:
    lines.append(
      'Frozen: intervals and tests are over splits, by the corrected resampled '
      't test (Nadeau and Bengio, 2003): the variance over n splits counts '
      '1/n + test rows / training rows of a whole split.'
    )
  return lines


def _ranges(
  grid: Grid, runs: Sequence[Mapping[str, Any]], number: str = 'steps'
) -> str:
  """The least and the largest number of the runs of each method."""
  found = collections.defaultdict(list)
  for one in runs:
    if number in one:
      found[one['method']].append(one[number])
  ranges = [
    f'{grid.method(name).title} {min(numbers):,}'
    + (f' to {max(numbers):,}' if min(numbers) < max(numbers) else '')
    for name, numbers in found.items()
  ]
  return ', '.join(ranges) or 'none'


def _collapsed(grid: Grid, runs: Sequence[Mapping[str, Any]]) -> list[str]:
  """A warning of each pre-training whose chosen state has collapsed."""
  warnings = [collapse_of(grid, one['method'], one['best']) for one in runs]
  return [
    f'WARNING: {grid.method(one["method"]).title}, seed {one["seed"]}: '
    f'{warning}.'
    for one, warning in zip(runs, warnings, strict=True)
    if warning
  ]
