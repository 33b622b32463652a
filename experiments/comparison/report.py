"""What a comparison leaves: results.json, results.md, and pictures of both."""

import collections
import contextlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from adaptssr_jax.data import resplit
from experiments.comparison.grid import (
  Cell,
  Grid,
  Pretraining,
  cells_of,
  plan,
)
from experiments.comparison.methods import METRICS
from experiments.comparison.pictures import draw_all
from experiments.comparison.runs import (
  LONGEST,
  best_validation,
  collapse_of,
  steps_taken,
)
from experiments.comparison.summary import Outcome, summarise
from experiments.comparison.sweeps import as_csv, sweep_points
from experiments.comparison.table import (
  DASH,
  LEVEL,
  MARK,
  REFERENCE,
  Column,
  Summary,
  markdown,
)
from experiments.finetune import PREDICTIONS
from experiments.settings import Settings, SettingsError
from experiments.workdir import RESULT, write_whole

_PACKAGES = ('jax', 'flax', 'optax', 'numpy', 'scikit-learn')


def write_report(settings: Settings, grid: Grid) -> dict[str, Any]:
  """Writes all results of a comparison whose runs are done.

  Args:
    settings: its flags; `methods` are the rows of the main table.
    grid: what they say.

  Returns:
    What `results.json` says. It holds nothing that depends on the clock: how
    long a run took stands in the file beside its folder.
  """
  summary = _summary(grid)
  sweeps = sweep_points(
    summary, settings.rhos, pairs=settings.augmentation_pairs
  )
  results = _results(settings, grid, summary, sweeps)
  text = json.dumps(results, indent=2, ensure_ascii=False)
  write_whole(grid.folder / 'results.json', text + '\n')
  write_whole(
    grid.folder / 'results.md', _page(settings, grid, summary, results)
  )
  for name, rows in sweeps.items():
    write_whole(grid.folder / f'{name}.csv', as_csv(rows))
  titles = {name: grid.methods[name].title for name in settings.methods}
  draw_all(grid.folder, summary, titles, sweeps)
  print(f'{grid.folder}: wrote results.md, results.json', flush=True)
  return results


def _summary(grid: Grid) -> Summary:
  summary = {}
  for task, data in grid.tasks.items():
    everybody = np.concatenate(
      [
        part.user_ids(np.arange(len(part.items)))
        for part in data.splits.values()
      ]
    )
    rows = {
      split: resplit(data, split).splits['test'].number for split in grid.splits
    }
    users = {split: everybody[numbers] for split, numbers in rows.items()}
    metric = METRICS[data.kind]
    for share in grid.shares:
      outcomes = {
        name: [_outcome(grid, cell, metric, rows[cell.split]) for cell in cells]
        for name in grid.methods
        if (cells := cells_of(grid, name, task, share))
      }
      column = Column(task, share, metric)
      summary[column] = summarise(outcomes, metric, users) if outcomes else {}
  return summary


def _outcome(grid: Grid, cell: Cell, metric: str, rows: np.ndarray) -> Outcome:
  """What a cell came to, on just these test rows."""
  path = grid.folder / cell.name / PREDICTIONS
  with np.load(path) as found:
    if not np.array_equal(found['example_id'], rows):
      raise SettingsError(
        f'{cell.name} was tested on other rows than split {cell.split} has: '
        f'delete {cell.name} and {cell.name}.json in --workdir'
      )
  value = _result(grid, cell)['test'][metric]
  if value is None:
    raise SettingsError(
      f'{cell.name} diverged and has no {metric}: give its flag file a smaller '
      '--learning_rate, and delete the folder'
    )
  return Outcome(value, cell.split, path)


def _result(grid: Grid, cell: Cell) -> dict[str, Any]:
  return json.loads((grid.folder / cell.name / RESULT).read_text())


def _results(
  settings: Settings, grid: Grid, summary: Summary, sweeps: Mapping[str, Any]
) -> dict[str, Any]:
  runs = plan(grid)
  records = [
    json.loads((grid.folder / f'{one.name}.json').read_text()) for one in runs
  ]
  # All that was asked for, though the next comparison here may ask for more.
  places = Settings.names_free_to_change(settings)
  return {
    'flags': settings.flag_values(without=places),
    'commits': sorted({record['commit'] for record in records}),
    'devices': sorted({record['device'] for record in records}),
    'versions': _versions(),
    'pretraining': [
      {
        'method': one.method,
        'seed': one.seed,
        'steps': steps_taken(grid, one),
        'best': best_validation(grid, one),
      }
      for one in runs
      if isinstance(one, Pretraining)
    ],
    'cells': [
      {
        'method': one.method,
        'task': one.task,
        'share': one.share,
        'split': one.split,
        'seed': one.seed,
      }
      | _what_counts(_result(grid, one))
      for one in runs
      if isinstance(one, Cell)
    ],
    'summary': [
      {**column._asdict(), 'methods': found}
      for column, found in summary.items()
    ],
    'sweeps': sweeps,
  }


def _what_counts(result: Mapping[str, Any]) -> dict[str, Any]:
  names = ('best_step', 'validation', 'test')
  return {name: result[name] for name in names if name in result}


def _page(
  settings: Settings,
  grid: Grid,
  summary: Summary,
  results: Mapping[str, Any],
) -> str:
  titles = {name: method.title for name, method in grid.methods.items()}
  main = {name: titles[name] for name in settings.methods}
  parts = [f'# {settings.dataset}\n', markdown(summary, main)]
  swept = {name: titles[name] for name in titles if name not in main}
  if swept:
    parts += ['# Sweeps\n', markdown(summary, swept)]
  parts += ['## How to read this\n', _notes(grid, titles, results)]
  return '\n'.join(parts)


def _versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    # Some are extras.
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[name] = metadata.version(name)
  return found


def _notes(
  grid: Grid, titles: Mapping[str, str], results: Mapping[str, Any]
) -> str:
  seeds, splits = len(grid.seeds), len(grid.splits)
  notes = [
    f'Metrics in percent on test rows, mean ± standard deviation over runs: '
    f'{len(grid.runs())} of {seeds} seeds and {splits} splits; a baseline has '
    f'no seed. Best in bold; {DASH} where a method cannot do the task.',
    f'Impr: percent over {titles.get(REFERENCE, REFERENCE)}, end-to-end '
    f'training. {MARK}: p < {LEVEL} in a two-sided paired test against it, not '
    'corrected for the number of rows: a bootstrap over test users, each with '
    'all of its rows and the mean over its seeds; for accuracy in a single run '
    "McNemar's exact test. Intervals are of the same bootstrap: they tell of "
    'the choice of users, not of that of the seeds.',
    f'Pre-trained with {len(grid.pretrain_seeds)} of the {seeds} seeds. Steps '
    f'of each stage: {_ranges(grid, results["pretraining"], "steps")}.',
    'Updates of fine-tuning up to the epoch that validated best: '
    f'{_ranges(grid, results["cells"], "best_step")}. On a share of the labels '
    f'there are as many times more epochs, at most {LONGEST} times.',
    f'Commit {", ".join(results["commits"])}; on '
    f'{", ".join(results["devices"])}; '
    + ', '.join(f'{name} {of}' for name, of in results['versions'].items())
    + '.',
  ]
  notes += _collapsed(grid, results['pretraining'])
  return ''.join(f'- {note}\n' for note in notes)


def _ranges(grid: Grid, runs: Sequence[Mapping[str, Any]], number: str) -> str:
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
