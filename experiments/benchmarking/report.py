"""The tables and pictures of the benchmark."""

import functools
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from experiments.benchmarking.cases import OURS, PYTORCH, Run
from experiments.benchmarking.parts import table_of
from experiments.run.pictures import Lines, MissingPlotsError, draw_lines, save
from experiments.run.process import tell

_DASH = '-'
# By what was measured: the rate, and the seconds of the batches.
_RATES = {
  'users/s': ('users_per_second', 'step_seconds'),
  'encoding, users/s': ('encoded_users_per_second', 'encoding_seconds'),
}


def report(runs: Sequence[Run]) -> str:
  """The tables of all sections, and what failed, in Markdown.

  Args:
    runs: `section`, `name`, `who` and `round` of each, and what was measured,
      or the `error`.
  """
  parts = []
  for section in dict.fromkeys(run['section'] for run in runs):
    found = [run for run in runs if run['section'] == section]
    table = _TABLES.get(section.split(',')[0], _configurations)
    parts += [f'## {section}', table(found)]
  for name, run in {run['name']: run for run in runs if 'parts' in run}.items():
    parts += [f'## Parts of a step, {name}', markdown(table_of(run['parts']))]
  failed = [
    f'- {run["section"]}, {run["name"]}, {run["who"]}: {run["error"]}'
    for run in runs
    if 'error' in run
  ]
  if failed:
    parts += ['Not measured:', '\n'.join(dict.fromkeys(failed))]
  parts.append(
    'Medians, in brackets quartiles of the steps; of ratios, the range of the '
    'rounds.'
  )
  return '\n\n'.join(parts) + '\n'


def draw_growth(runs: Sequence[Run], folder: pathlib.Path) -> None:
  """Draws `growth_NAME` for each flag, as PNG and SVG: users/s, and memory.

  What was not measured is a cross. Without Matplotlib it only says so.
  """
  try:
    for section in dict.fromkeys(run['section'] for run in runs):
      own = [run for run in runs if run['section'] == section]
      name = section.rpartition('--')[2]
      memory = (
        'device_peak_mib' if own[0].get('device_peak_mib') else 'peak_mib'
      )
      panels = [
        _panel('users/s', own, 'users_per_second'),
        _panel('peak memory, MiB', own, memory),
      ]
      sizes = [int(size) for size in dict.fromkeys(run['name'] for run in own)]
      figure = draw_lines(panels, label=f'--{name}', sizes=sizes)
      save(figure, folder / f'growth_{name}')
  except MissingPlotsError as error:
    tell(f'no pictures: {error}')


def _panel(title: str, runs: Sequence[Run], name: str) -> Lines:
  """The median of the rounds at each size."""
  found = {int(run['name']): [] for run in runs}
  for run in runs:
    found[int(run['name'])] += [run[name]] if run.get(name) else []
  points = [
    (size, statistics.median(values or [float('nan')]))
    for size, values in found.items()
  ]
  return Lines(title, {'': points})


def _catalogues(runs: Sequence[Run]) -> str:
  """A column for each catalogue, a row for each number."""
  names = list(dict.fromkeys(run['name'] for run in runs))
  peers = dict.fromkeys(run['who'] for run in runs if run['who'] != OURS)
  ours = [_of(runs, name, OURS) for name in names]
  rows = [['', *names]]
  rows += [[title, *map(show, ours)] for title, show in _SHOW.items()]
  for title, (rate, seconds) in _RATES.items():
    for who in peers:
      theirs = [_of(runs, name, who) for name in names]
      shown = [_quartiles(found, seconds=seconds) for found in theirs]
      ratios = [
        _ratio(*pair, rate=rate) for pair in zip(ours, theirs, strict=True)
      ]
      rows.append([f'{who}: {title}', *shown])
      rows.append([f'ours / {who}: {title}', *ratios])
  # What nobody measured needs no row.
  return markdown([row for row in rows if set(row[1:]) != {_DASH}])


def _configurations(runs: Sequence[Run]) -> str:
  """A row for each configuration, compared to the first."""
  names = list(dict.fromkeys(run['name'] for run in runs))
  columns = [
    'users/s',
    'tokens/s',
    'of a large product',
    'peak memory, MiB',
  ]
  rows = [['', 'ms a step', *columns, f'speed / that of {names[0]}']]
  first = _of(runs, names[0], OURS)
  for name in names:
    found = _of(runs, name, OURS)
    step = [1000 * second for run in found for second in run['step_seconds']]
    rows.append(
      [
        name,
        f'{statistics.median(step):,.0f}' if step else _DASH,
        *(_SHOW[column](found) for column in columns),
        _ratio(found, first, rate='users_per_second'),
      ]
    )
  return markdown(rows)


def _objectives(runs: Sequence[Run]) -> str:
  """A row for each objective, beside plain PyTorch."""
  columns = [
    *('users/s', 'GFLOP/s of real tokens', 'peak memory, MiB'),
    *(f'{PYTORCH}: users/s', f'{PYTORCH}: peak memory, MiB'),
  ]
  rows = [['', *columns, f'ours / {PYTORCH}: users/s']]
  for name in dict.fromkeys(run['name'] for run in runs):
    ours, theirs = (_of(runs, name, who) for who in (OURS, PYTORCH))
    shown = [_SHOW[column](ours) for column in columns[:3]]
    shown += [_SHOW[column](theirs) for column in ('users/s', columns[2])]
    ratio = _ratio(ours, theirs, rate='users_per_second')
    rows.append([name, *shown, ratio])
  return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A table whose first row is its head, and its columns in line.

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
  """The rounds of a case that did not fail."""
  return [
    run
    for run in runs
    if (run['name'], run['who']) == (name, who) and 'error' not in run
  ]


def _median(runs: Sequence[Run], *, name: str, form: str = ',.0f') -> str:
  """The median over the rounds."""
  values = [run[name] for run in runs if run.get(name) is not None]
  return format(statistics.median(values), form) if values else _DASH


def _quartiles(runs: Sequence[Run], *, seconds: str) -> str:
  """Users a second in the batches of all rounds: the median and quartiles."""
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
  """How much faster than the others of the same round: median and range."""
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


def _product(runs: Sequence[Run]) -> str:
  of = _median(runs, name='product_gflops')
  share = _median(runs, name='product_share', form='.0%')
  return _DASH if share == _DASH else f'{share} of {of}'


def _compiling(runs: Sequence[Run], *, name: str, again: bool = False) -> str:
  """The seconds of the first round, or of the others, which find programs."""
  some = [run for run in runs if (run['round'] > 0) == again]
  return _median(some, name=name, form='.1f')


_SHOW = {
  'users/s': functools.partial(_quartiles, seconds='step_seconds'),
  'tokens/s': functools.partial(_median, name='tokens_per_second'),
  'padding in what is encoded': functools.partial(
    _median, name='padding_share', form='.0%'
  ),
  'GFLOP/s of real tokens': functools.partial(_median, name='gflops'),
  'of a large product': _product,
  'compiling, s: first': functools.partial(_compiling, name='compile_seconds'),
  'compiling, s: again': functools.partial(
    _compiling, name='compile_seconds', again=True
  ),
  'first step, with compiling, s': functools.partial(
    _compiling, name='first_step_seconds'
  ),
  'peak memory, MiB': functools.partial(_median, name='peak_mib'),
  'peak device memory, MiB': functools.partial(_median, name='device_peak_mib'),
  'temporary memory of a step, MiB': functools.partial(
    _median, name='temp_mib'
  ),
  'input, users/s': functools.partial(_median, name='input_users_per_second'),
  'input wait': functools.partial(_median, name='input_wait_share', form='.1%'),
  'encoding, users/s': functools.partial(
    _quartiles, seconds='encoding_seconds'
  ),
}
# By the first words of the title of a section.
_TABLES = {'Pre-training': _catalogues, 'Objectives': _objectives}
