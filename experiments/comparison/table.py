"""The tables of a comparison, in the paper's form, and how to read them."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.comparison.commands import LONGEST
from experiments.comparison.grid import Grid, collapse_of
from experiments.comparison.methods import (
  FINE_TUNED,
  FROZEN,
  FROZEN_WITH_BAG,
  REFERENCE,
)

# Below this p, the table says so.
LEVEL = 0.05
MARK = '†'
DASH = '-'


class Column(NamedTuple):
  """A task, at a share of its training labels, in one mode."""

  task: str  # its name
  share: float  # of the training rows
  metric: str  # by which methods are compared, a number in 0..1
  mode: str = FINE_TUNED  # how the vectors are used

  @property
  def title(self) -> str:
    """`age, accuracy`, and the share and mode if they are not as usual."""
    labels = '' if self.share == 1 else f', {_percent(self.share)} of labels'
    mode = '' if self.mode == FINE_TUNED else f', {_MODES[self.mode]}'
    return f'{self.task}, {self.metric}{labels}{mode}'


_MODES = {
  FINE_TUNED: 'fine-tuned',
  FROZEN: 'frozen',
  FROZEN_WITH_BAG: 'frozen + bag',
}

Summary = Mapping[Column, Mapping[str, Mapping[str, Any]]]


def markdown(
  summary: Summary, titles: Mapping[str, str], *, reference: str = REFERENCE
) -> str:
  """The tables of all shares of the labels, each followed by its intervals.

  Args:
    summary: for each column and method, as of `summary.summarise`; a method is
      missing where it cannot do the task.
  """
  shares = list(dict.fromkeys(column.share for column in summary))
  parts = []
  for share in shares:
    columns = [column for column in summary if column.share == share]
    heading = 'All' if share == 1 else f'{_percent(share)} of the'
    parts += [
      f'## {heading} training labels\n',
      _means(summary, columns, titles),
      '95 % intervals of the metric, and of its difference to '
      f'{titles.get(reference, reference)}, in points:\n',
      _intervals(summary, columns, titles),
    ]
  return '\n'.join(parts)


def _names(columns: Sequence[Column]) -> list[str]:
  """Of the columns of a table, with the mode where there are several."""
  several = any(column.mode != FINE_TUNED for column in columns)
  return [
    f'{column.task} {column.metric}'
    + (f', {_MODES[column.mode]}' if several else '')
    for column in columns
  ]


def _means(
  summary: Summary, columns: Sequence[Column], titles: Mapping[str, str]
) -> str:
  """Mean and error; where it is fine-tuned the improvement, as in the paper."""
  head = ['Pre-train']
  for column, name in zip(columns, _names(columns), strict=True):
    head += [name, 'Impr'] if column.mode == FINE_TUNED else [name]
  # The best of these rows: a sweep has a table of its own.
  shown = {
    column: {
      name: found for name, found in summary[column].items() if name in titles
    }
    for column in columns
  }
  rows = []
  for name, title in titles.items():
    row = [title]
    for column in columns:
      row.append(_mean(shown[column], name))
      if column.mode == FINE_TUNED:
        found = shown[column].get(name, {}).get('improvement')
        row.append(DASH if found is None else f'{found:.2f}')
    rows.append(row)
  return _table(head, rows)


def _mean(methods: Mapping[str, Mapping[str, Any]], name: str) -> str:
  if name not in methods:
    return DASH
  values = methods[name]
  text = f'{100 * values["mean"]:.2f}'
  if values['error'] is not None:
    text += f' ± {100 * values["error"]:.2f}'
  if values['mean'] == max(other['mean'] for other in methods.values()):
    text = f'**{text}**'
  if values['p_holm'] is not None and values['p_holm'] < LEVEL:
    text += f' {MARK}'
  return text


def _intervals(
  summary: Summary, columns: Sequence[Column], titles: Mapping[str, str]
) -> str:
  head = ['Pre-train']
  for name in _names(columns):
    head += [name, 'difference', 'p', 'Holm']
  rows = []
  for name, title in titles.items():
    row = [title]
    for column in columns:
      row += _interval_cells(summary[column].get(name))
    rows.append(row)
  return _table(head, rows)


def _interval_cells(values: Mapping[str, Any] | None) -> list[str]:
  if values is None:
    return [DASH] * 4
  own = _interval(values['interval'])
  if values['difference'] is None:
    return [own, DASH, DASH, DASH]
  difference = f'{100 * values["difference"]:+.2f}'
  ends = _interval(values['difference_interval'], sign='+')
  tests = [values['p'], values['p_holm']]
  tests = [f'{p:.4f}' if p >= 0.0001 else '< 0.0001' for p in tests]
  return [own, f'{difference} {ends}', *tests]


def _interval(ends: Sequence[float], sign: str = '') -> str:
  low, high = (f'{100 * end:{sign}.2f}' for end in ends)
  return f'[{low}, {high}]'


def _percent(share: float) -> str:
  return f'{100 * share:g} %'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Markdown, numbers to the right.

  Example:
    >>> print(_table(['a', 'b'], [['x', '1']]), end='')
    | a | b |
    |---|--:|
    | x | 1 |
  """
  rule = '|---|' + '--:|' * (len(head) - 1)
  lines = [f'| {" | ".join(row)} |' for row in (head, *rows)]
  return '\n'.join([lines[0], rule, *lines[1:]]) + '\n'


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
  if grid.modes != (FINE_TUNED,):
    lines += _of_frozen(grid)
  lines += [
    f'Pre-trained with {len(grid.pretrain_seeds)} of the {len(grid.seeds)} '
    f'seeds. Steps of each stage: {_ranges(grid, results["pretraining"])}.',
    f'Commit {", ".join(results["commits"])}; on '
    f'{", ".join(results["devices"])}; '
    + ', '.join(
      f'{name} {version}' for name, version in results['versions'].items()
    )
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
    'Frozen: logistic regression, for rankings ridge regression onto the '
    'targets, on standardised vectors of the encoder as pre-training left it, '
    'the penalty by validation; + bag: on them and the TF-IDF bag of the whole '
    'history, whose weight validation chooses too. Labels are split anew '
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
