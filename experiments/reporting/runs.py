"""Sections that show runs side by side: curves, results and settings."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting.charts import Curve, as_svg, draw_chart
from experiments.reporting.page import Chart, Section, Table
from experiments.run.logs import read_metrics
from experiments.run.workdir import RESULT, reading_json, saved_flags

_DASH = '-'
_VALIDATION = 'validation_'
_SPLITS = 'validation', 'test'
# Explanations as in docs/pretraining.md; other metrics follow in order of name.
_MEANING = {
  'loss': 'The training objective, which is minimised.',
  'lambda': 'Weight of ranking the implicit above the explicit view: high for '
  'users whose two explicit views are dissimilar.',
  'implicit_over_explicit': 'Share of users whose implicit view is ranked '
  'above the explicit ones.',
  'explicit_over_other': 'Share of users whose explicit views are ranked above '
  'all other users.',
  'implicit': 'Mean similarity to the implicit view.',
  'explicit': 'Mean similarity to the explicit views.',
  'other': 'Mean similarity to other users.',
  'hardest': 'Mean similarity to the most similar other user.',
  'effective_rank': 'Number of directions in which the user vectors differ.',
  'mean_cosine': 'Mean cosine of two users: 1 if all vectors are alike.',
  'uniformity': 'How evenly the vectors are spread: lower is more even.',
  'alignment': 'Distance between the explicit views of a user.',
  'seconds': 'Seconds of training, with compilation, without validation.',
}


class Run(NamedTuple):
  """The files of a run, as far as they are written."""

  name: str  # its name in charts and tables
  flags: Mapping[str, str]  # its settings, as text
  lines: Sequence[Mapping[str, float]]  # lines of `metrics.jsonl`
  result: Mapping[str, Any]  # contents of `result.json`, or empty

  def series(self, metric: str) -> tuple[list[float], list[float]]:
    """The steps at which a metric was logged, and its values."""
    found = [line for line in self.lines if metric in line]
    return [line['step'] for line in found], [line[metric] for line in found]


def read_run(name: str, folder: pathlib.Path) -> Run:
  """Reads the folder of a run, which may still be training."""
  path, result = folder / RESULT, {}
  if path.exists():
    with reading_json(path, writer='a run') as result:
      result |= {n: _numbers(result[n]) for n in _SPLITS if n in result}
  lines = [_numbers(line) for line in read_metrics(folder)]
  return Run(name, saved_flags(folder), lines, result)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
  """The values that can be drawn: finite numbers in the range of float32."""
  return {
    name: value
    for name, value in values.items()
    if isinstance(value, int | float) and abs(value) < 1e38
  }


def names_of(folders: Sequence[pathlib.Path]) -> list[str]:
  """Paths of folders relative to the folder that contains all of them.

  Example:
    >>> names_of([pathlib.Path('runs/a'), pathlib.Path('runs/b/seed_0')])
    ['a', 'b/seed_0']
  """
  paths = [os.path.abspath(folder) for folder in folders]
  if not paths:
    return []
  shared = os.path.commonpath(paths)
  if shared in paths:
    shared = os.path.dirname(shared)
  return [os.path.relpath(path, shared) for path in paths]


def run_sections(runs: Sequence[Run]) -> list[Section]:
  """All sections about runs that have contents, in order."""
  if not runs:
    return []
  sections = [_overview(runs), _curves(runs), _results(runs), _settings(runs)]
  return [section for section in sections if section.tables or section.folded]


def _overview(runs: Sequence[Run]) -> Section:
  head = ['run', 'trains', 'data set', 'steps', 'loss', 'best validation loss']
  rows = []
  for run in runs:
    trains = run.flags.get('objective') or run.flags.get('task', _DASH)
    data = run.flags.get('dataset', _DASH)
    steps = f'{run.lines[-1]["step"]:,}' if run.lines else _DASH
    losses = zip(*run.series('validation_loss'), strict=True)
    best = min(losses, key=lambda pair: pair[1], default=None)
    least = f'{best[1]:.4g} at step {best[0]:,}' if best else _DASH
    rows.append([run.name, trains, data, steps, _last(run, 'loss'), least])
  return Section('Runs', tables=[Table('All runs', head, rows)])


def _curves(runs: Sequence[Run]) -> Section:
  """A chart for each metric, and a table of their last values."""
  logged = {name for run in runs for line in run.lines for name in line}
  found = {name.removeprefix(_VALIDATION) for name in logged - {'step'}}
  metrics = [name for name in _MEANING if name in found]
  metrics += sorted(found - _MEANING.keys())
  head = ['last value']
  for run in runs:
    head += [run.name, 'validation']
  rows = [
    [
      name,
      *(_last(run, kind + name) for run in runs for kind in ('', _VALIDATION)),
    ]
    for name in metrics
  ]
  return Section(
    'Curves',
    note='Lines: training; dots: validation.',
    legend=[run.name for run in runs],
    charts=[_chart(runs, name) for name in metrics],
    tables=[Table('The last value of each curve', head, rows)] if rows else [],
  )


def _chart(runs: Sequence[Run], metric: str) -> Chart:
  curves = [
    Curve(index, *run.series(prefix + metric), dotted=bool(prefix))
    for index, run in enumerate(runs)
    for prefix in ('', _VALIDATION)
  ]
  label = f'{metric} over steps, of {len(runs)} runs'
  svg = as_svg(draw_chart(curves, label='step'))
  return Chart(svg, label, metric, _MEANING.get(metric, ''))


def _last(run: Run, metric: str) -> str:
  _, values = run.series(metric)
  return f'{values[-1]:.4g}' if values else _DASH


def _results(runs: Sequence[Run]) -> Section:
  """The metrics in `result.json` of each run that has them."""
  tables = []
  for run in runs:
    splits = [name for name in _SPLITS if name in run.result]
    if not splits:
      continue
    metrics = dict.fromkeys(m for name in splits for m in run.result[name])
    rows = []
    for metric in metrics:
      values = [run.result[name].get(metric) for name in splits]
      cells = [_DASH if value is None else f'{value:.4f}' for value in values]
      rows.append([metric, *cells])
    caption = f'{run.name}, task {run.result.get("task", _DASH)}'
    tables.append(Table(caption, ['metric', *splits], rows))
  return Section('Results', tables=tables)


def _settings(runs: Sequence[Run]) -> Section:
  """A table of the flags that differ, and one of all flags."""
  names = sorted({name for run in runs for name in run.flags})
  differ = [n for n in names if len({run.flags.get(n) for run in runs}) > 1]
  return Section(
    'Settings',
    tables=[_flags('Settings that differ', runs, differ)] if differ else [],
    folded=_flags(f'All {len(names)} settings', runs, names),
  )


def _flags(caption: str, runs: Sequence[Run], names: Iterable[str]) -> Table:
  head = ['flag', *(run.name for run in runs)]
  rows = [
    [f'--{name}', *(run.flags.get(name, _DASH) for run in runs)]
    for name in names
  ]
  return Table(caption, head, rows, is_text=True)
