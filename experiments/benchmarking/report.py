"""The tables and pictures of the benchmark."""

import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from experiments.benchmarking.cases import OURS, PRE_TRAINING, Run
from experiments.benchmarking.parts import table_of
from experiments.run.pictures import Lines, draw_lines, save

_DASH = '-'
_RATES = {
  'users/s': 'users_per_second',
  'encoding, users/s': 'encoded_users_per_second',
}


def report(runs: Sequence[Run]) -> str:
  """Formats the tables of all sections, and the failures, as Markdown.

  Args:
    runs: the `section`, `name`, `who` and `round` of each run, and its results
      or its `error`.
  """
  parts = []
  for section in dict.fromkeys(run['section'] for run in runs):
    found = [run for run in runs if run['section'] == section]
    parts += [f'## {section}', _table(section, found)]
  for name, run in {run['name']: run for run in runs if 'parts' in run}.items():
    parts += [f'## Parts of a step, {name}', markdown(table_of(run['parts']))]
  failed = [
    f'- {run["section"]}, {run["name"]}, {run["who"]}: {run["error"]}'
    for run in runs
    if 'error' in run
  ]
  if failed:
    parts += ['Not measured:', '\n'.join(dict.fromkeys(failed))]
  parts.append('How to read these tables: docs/speed.md')
  return '\n\n'.join(parts) + '\n'


def draw_growth(runs: Sequence[Run], folder: pathlib.Path) -> None:
  """Draws rate and memory over each flag as `growth_NAME`, in PNG and SVG.

  A value that failed is a cross.
  """
  for section in dict.fromkeys(run['section'] for run in runs):
    own = [run for run in runs if run['section'] == section]
    name = section.rpartition('--')[2]
    memory = 'device_peak_mib' if own[0].get('device_peak_mib') else 'peak_mib'
    panels = [
      _panel('users/s', own, 'users_per_second'),
      _panel('peak memory, MiB', own, memory),
    ]
    sizes = [int(size) for size in dict.fromkeys(run['name'] for run in own)]
    figure = draw_lines(panels, label=f'--{name}', sizes=sizes)
    save(figure, folder / f'growth_{name}')


def _panel(title: str, runs: Sequence[Run], name: str) -> Lines:
  """A curve of the medians over the rounds."""
  found = {int(run['name']): [] for run in runs}
  for run in runs:
    found[int(run['name'])] += [run[name]] if run.get(name) else []
  points = [
    (size, statistics.median(values or [float('nan')]))
    for size, values in found.items()
  ]
  return Lines(title, {'': points})


def _table(section: str, runs: Sequence[Run]) -> str:
  """The table of a section, without numbers that no run measured.

  The few catalogues of pre-training, with their many numbers, are columns. In
  other sections each configuration is a row, and is compared to the first one
  unless the section compares it to a peer.
  """
  kind = section.split(',')[0]
  names = list(dict.fromkeys(run['name'] for run in runs))
  cells = [_cells(runs, name, _TITLES.get(kind, _OTHERS)) for name in names]
  if kind not in _TITLES:
    first = _of(runs, names[0], OURS)
    for name, found in zip(names, cells, strict=True):
      ratio = _ratio(_of(runs, name, OURS), first, rate='users_per_second')
      found[f'speed / that of {names[0]}'] = ratio
  lines = [[title, *(found[title] for found in cells)] for title in cells[0]]
  lines = [line for line in lines if set(line[1:]) != {_DASH}]
  lines.insert(0, ['', *names])
  if kind != PRE_TRAINING:
    lines = [list(row) for row in zip(*lines, strict=True)]
  return markdown(lines)


def _cells(
  runs: Sequence[Run], name: str, titles: Sequence[str]
) -> dict[str, str]:
  """The numbers of a configuration by title: ours, and those of each peer."""
  ours = _of(runs, name, OURS)
  cells = {title: _show(title, ours) for title in titles}
  for who in dict.fromkeys(run['who'] for run in runs if run['who'] != OURS):
    theirs = _of(runs, name, who)
    for title in (*_RATES, 'peak memory, MiB'):
      cells[f'{who}: {title}'] = _show(title, theirs)
    for title, rate in _RATES.items():
      cells[f'ours / {who}: {title}'] = _ratio(ours, theirs, rate=rate)
  return cells


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table with aligned columns; the first row is its head.

  Example:
    >>> print(markdown([['', 'users/s'], ['ours', '9']]))
    |      | users/s |
    |------|--------:|
    | ours |       9 |
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    cells = [first.ljust(widths[0])]
    cells += [x.rjust(w) for x, w in zip(others, widths[1:], strict=True)]
    lines.append(f'| {" | ".join(cells)} |')
  rules = ['-' * (widths[0] + 2), *(f'{"-" * (w + 1)}:' for w in widths[1:])]
  return '\n'.join([lines[0], f'|{"|".join(rules)}|', *lines[1:]])


def _of(runs: Sequence[Run], name: str, who: str) -> list[Run]:
  """The successful rounds of a case."""
  return [
    run
    for run in runs
    if (run['name'], run['who']) == (name, who) and 'error' not in run
  ]


def _median(runs: Sequence[Run], name: str, form: str = ',.0f') -> str:
  """The median over the rounds."""
  values = [run[name] for run in runs if run.get(name) is not None]
  return format(statistics.median(values), form) if values else _DASH


def _quartiles(runs: Sequence[Run], seconds: str) -> str:
  """Median and quartiles of the users per second over batches of all rounds."""
  rates = [
    run['batch_size'] / second
    for run in runs
    for second in run.get(seconds, ())
  ]
  if not rates:
    return _DASH
  low, middle, high = np.percentile(rates, (25, 50, 75))
  return f'{middle:,.0f} ({low:,.0f}..{high:,.0f})'


def _ratio(runs: Sequence[Run], others: Sequence[Run], *, rate: str) -> str:
  """Median and range of the ratios of two rates of the same round."""
  by_round = {run['round']: run[rate] for run in others if rate in run}
  ratios = [
    run[rate] / by_round[run['round']]
    for run in runs
    if rate in run and run['round'] in by_round
  ]
  if not ratios:
    return _DASH
  middle = statistics.median(ratios)
  return f'{middle:.2f} ({min(ratios):.2f}..{max(ratios):.2f})'


def _step(runs: Sequence[Run]) -> str:
  """The median of the steps of all rounds, in milliseconds."""
  seconds = [second for run in runs for second in run['step_seconds']]
  return f'{1000 * statistics.median(seconds):,.0f}' if seconds else _DASH


def _product(runs: Sequence[Run]) -> str:
  of = _median(runs, 'product_gflops')
  share = _median(runs, 'product_share', '.0%')
  return _DASH if share == _DASH else f'{share} of {of}'


def _first_round(runs: Sequence[Run], name: str) -> str:
  """Seconds of the first round, which fills the cache of compiled programs."""
  return _median([run for run in runs if not run['round']], name, '.1f')


def _later_rounds(runs: Sequence[Run], name: str) -> str:
  """Seconds of later rounds, which find a filled cache."""
  return _median([run for run in runs if run['round']], name, '.1f')


def _show(title: str, runs: Sequence[Run]) -> str:
  """Formats a number of our tables for the rounds of a case."""
  function, *settings = _SHOW[title]
  return function(runs, *settings)


# The function that formats each number, and its arguments after the runs.
_SHOW = {
  'ms a step': (_step,),
  'users/s': (_quartiles, 'step_seconds'),
  'tokens/s': (_median, 'tokens_per_second'),
  'padding among encoded positions': (_median, 'padding_share', '.0%'),
  'GFLOP/s of real tokens': (_median, 'gflops'),
  'of a large product': (_product,),
  'compilation, s': (_first_round, 'compile_seconds'),
  'compilation from the cache, s': (_later_rounds, 'compile_seconds'),
  'first step with compilation, s': (_first_round, 'first_step_seconds'),
  'peak memory, MiB': (_median, 'peak_mib'),
  'peak device memory, MiB': (_median, 'device_peak_mib'),
  'temporary memory of a step, MiB': (_median, 'temp_mib'),
  'input, users/s': (_median, 'input_users_per_second'),
  'input wait': (_median, 'input_wait_share', '.1%'),
  'encoding, users/s': (_quartiles, 'encoding_seconds'),
}
# Our numbers in the tables of sections, by the start of the section's title.
_TITLES = {
  PRE_TRAINING: tuple(_SHOW),
  'Objectives': ('users/s', 'GFLOP/s of real tokens', 'peak memory, MiB'),
}
# Our numbers in the tables of all other sections.
_OTHERS = (
  *('ms a step', 'users/s', 'tokens/s', 'of a large product'),
  'peak memory, MiB',
)
