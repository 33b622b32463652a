"""The table of a comparison, in the form of the paper's."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# What the methods are compared with.
REFERENCE = 'none'
# Below this p, the table says so.
LEVEL = 0.05
MARK = '†'
DASH = '-'


class Column(NamedTuple):
  """A task, at a share of its training labels.

  Args:
    task: its name.
    share: of the training rows.
    metric: by which methods are compared, a number in 0..1.
  """

  task: str
  share: float
  metric: str

  @property
  def title(self) -> str:
    """`age, accuracy`, and the share if it is not all."""
    labels = '' if self.share == 1 else f', {_percent(self.share)} of labels'
    return f'{self.task}, {self.metric}{labels}'


Summary = Mapping[Column, Mapping[str, Mapping[str, Any]]]


def markdown(summary: Summary, titles: Mapping[str, str]) -> str:
  """The tables of all shares of the labels, each followed by its intervals.

  Args:
    summary: for each column and method, what `summary.summarise`
      says; a method is missing where it cannot do the task.
    titles: of the rows, by method, in order.

  Returns:
    Markdown, a heading and two tables a share.
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
      f'{titles.get(REFERENCE, REFERENCE)}, in points:\n',
      _intervals(summary, columns, titles),
    ]
  return '\n'.join(parts)


def _means(
  summary: Summary, columns: Sequence[Column], titles: Mapping[str, str]
) -> str:
  """Mean, spread and improvement: two columns a task, as in the paper."""
  head = ['Pre-train']
  for column in columns:
    head += [f'{column.task} {column.metric}', 'Impr']
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
      row += _mean_and_improvement(shown[column], name)
    rows.append(row)
  return _table(head, rows)


def _mean_and_improvement(
  methods: Mapping[str, Mapping[str, Any]], name: str
) -> list[str]:
  if name not in methods:
    return [DASH, DASH]
  values = methods[name]
  text = f'{100 * values["mean"]:.2f}'
  if values['std'] is not None:
    text += f' ± {100 * values["std"]:.2f}'
  if values['mean'] == max(other['mean'] for other in methods.values()):
    text = f'**{text}**'
  if values['p'] is not None and values['p'] < LEVEL:
    text += f' {MARK}'
  improvement = values['improvement']
  if name == REFERENCE or improvement is None:
    return [text, DASH]
  return [text, f'{improvement:.2f}']


def _intervals(
  summary: Summary, columns: Sequence[Column], titles: Mapping[str, str]
) -> str:
  head = ['Pre-train']
  for column in columns:
    head += [f'{column.task} {column.metric}', 'difference', 'p']
  rows = []
  for name, title in titles.items():
    row = [title]
    for column in columns:
      row += _interval_cells(summary[column].get(name))
    rows.append(row)
  return _table(head, rows)


def _interval_cells(values: Mapping[str, Any] | None) -> list[str]:
  if values is None:
    return [DASH] * 3
  own = _interval(values['interval'])
  if values['difference'] is None:
    return [own, DASH, DASH]
  difference = f'{100 * values["difference"]:+.2f}'
  ends = _interval(values['difference_interval'], sign='+')
  p = values['p']
  shown = f'{p:.4f}' if p >= 0.0001 else '< 0.0001'
  return [own, f'{difference} {ends}', shown]


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
