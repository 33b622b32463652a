"""The tables of a comparison, in the form of the paper, and notes on them."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.comparison.grid import Grid, collapse_of
from experiments.comparison.methods import (
  FINE_TUNED,
  FROZEN,
  FROZEN_WITH_BAG,
  REFERENCE,
)

# The table marks values of p below this level.
LEVEL = 0.05
MARK = '†'
DASH = '-'


class Column(NamedTuple):
  """A task, at a share of its training labels, in one mode."""

  task: str  # the name of the task
  share: float  # the share of the training rows
  metric: str  # the metric by which methods are compared, within 0..1
  mode: str = FINE_TUNED  # how the encoder is used, of `methods.MODES`

  @property
  def title(self) -> str:
    """`age, accuracy`, and the share and mode if they are not the default."""
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
  """The tables in Markdown, one for each share, each with its intervals.

  Args:
    summary: for each column and method, the result of `summary.summarise`; a
      method is missing where it cannot do the task.
  """
  reference = titles.get(reference, reference)
  parts = []
  for share in dict.fromkeys(column.share for column in summary):
    columns = [column for column in summary if column.share == share]
    heading = 'All' if share == 1 else f'{_percent(share)} of the'
    compared = f'and of its difference to {reference}, in points'
    if not is_tested(summary[column] for column in columns):
      compared = f'in points, without a comparison with {reference}'
    parts += [
      f'## {heading} training labels\n',
      _means(summary, columns, titles),
      f'95 % intervals of the metric, {compared}:\n',
      _intervals(summary, columns, titles),
    ]
  return '\n'.join(parts)


def is_tested(columns: Iterable[Mapping[str, Mapping[str, Any]]]) -> bool:
  """Whether a row of some column is compared with the reference."""
  return any(
    values['p'] is not None
    for methods in columns
    for values in methods.values()
  )


def _names(columns: Sequence[Column]) -> list[str]:
  """The headings of columns, with the mode if some are frozen."""
  several = any(column.mode != FINE_TUNED for column in columns)
  return [
    f'{column.task} {column.metric}'
    + (f', {_MODES[column.mode]}' if several else '')
    for column in columns
  ]


def _means(
  summary: Summary, columns: Sequence[Column], titles: Mapping[str, str]
) -> str:
  """The table of means and errors; fine-tuned columns have an improvement."""
  head = ['Pre-train']
  for column, name in zip(columns, _names(columns), strict=True):
    head += [name, 'Impr'] if column.mode == FINE_TUNED else [name]
  # The best value is that of these rows: a sweep has a table of its own.
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
  """A table in Markdown, whose numbers are aligned to the right.

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
  """The facts of this comparison, as a list in Markdown."""
  settings, reference = grid.settings, grid.settings.reference
  title = results['titles'].get(reference, reference)
  mark = f'{MARK}: p < {LEVEL} in a paired test against {title}.'
  if not is_tested(column['methods'] for column in results['summary']):
    mark = f'No tests: no row is compared with {title}.'
  lines = [
    f'{mark} How the numbers, intervals and tests are computed: '
    'docs/comparing.md, "How to read the tables".'
  ]
  if any(FINE_TUNED in grid.modes_of(task) for task in grid.tasks):
    lines.append(
      f'Runs for each fine-tuned value: {len(grid.runs())} (seeds: '
      f'{len(grid.seeds)}, splits: {len(grid.splits)}); for a baseline: '
      f'{len(grid.splits)}. Updates up to the best epoch: '
      f'{_ranges(grid, results["cells"], "best_step")}.'
    )
  if settings.modes != (FINE_TUNED,):
    lines.append(f'Splits in frozen columns: {settings.probe_splits}.')
  if results['pretraining']:
    lines.append(
      f'Seeds used for pre-training: {len(grid.pretrain_seeds)} of '
      f'{len(grid.seeds)}. Steps of each stage: '
      f'{_ranges(grid, results["pretraining"])}.'
    )
  lines += [
    f'Commit {", ".join(results["commits"])}; on '
    f'{", ".join(results["devices"])}; '
    + ', '.join(
      f'{name} {version}' for name, version in results['versions'].items()
    )
    + '.',
  ]
  lines += _collapsed(grid, results['pretraining'])
  return ''.join(f'- {line}\n' for line in lines)


def _ranges(
  grid: Grid, runs: Sequence[Mapping[str, Any]], number: str = 'steps'
) -> str:
  """The smallest and the largest value among the runs of each method."""
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
  """Warnings of pre-training runs whose best state has collapsed."""
  warnings = [collapse_of(grid, one['method'], one['best']) for one in runs]
  return [
    f'WARNING: {grid.method(one["method"]).title}, seed {one["seed"]}: '
    f'{warning}.'
    for one, warning in zip(runs, warnings, strict=True)
    if warning
  ]
