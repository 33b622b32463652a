"""The results of a comparison: results.json, results.md, and pictures."""

import contextlib
import dataclasses
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from adaptssr_jax.data import resplit
from experiments.comparison.grid import (
  Cell,
  Grid,
  Pretraining,
  best_validation,
  cells_of,
  plan,
  steps_taken,
)
from experiments.comparison.methods import (
  FINE_TUNED,
  METRICS,
  pair_methods,
  rho_methods,
)
from experiments.comparison.pictures import (
  as_csv,
  draw_all,
  requested_sweeps,
  sweep_points,
)
from experiments.comparison.summary import Outcome, summarise, summarise_splits
from experiments.comparison.table import Column, Summary, markdown, notes
from experiments.finetuning.predictions import PREDICTIONS
from experiments.flags.binder import Settings, SettingsError
from experiments.run.process import print_result_line
from experiments.run.workdir import RESULT, atomic_write

_PACKAGES = ('jax', 'flax', 'optax', 'numpy', 'scikit-learn')


def write_report(grid: Grid) -> dict[str, Any]:
  """Writes all results of a comparison whose runs are finished.

  Returns:
    The content of `results.json`. It holds no times, so that a repeated
    comparison gives the same file; the file beside a run's folder has its time.
  """
  summary, settings = _summary(grid), grid.settings
  sweeps = requested_sweeps(settings.rhos, pairs=settings.augmentation_pairs)
  points = {name: sweep_points(summary, sweeps[name]) for name in sweeps}
  results = _results(grid, summary, points)
  text = json.dumps(results, indent=2, ensure_ascii=False)
  atomic_write(grid.folder / 'results.json', text + '\n')
  page = f'{page_of(results)}\n## How to read this\n\n{notes(grid, results)}'
  atomic_write(grid.folder / 'results.md', page)
  for name, rows in points.items():
    atomic_write(grid.folder / f'{name}.csv', as_csv(rows))
  draw_all(grid.folder, summary, main_rows(results), sweeps)
  print_result_line(f'{grid.folder}: wrote results.md, results.json')
  return results


def _summary(grid: Grid) -> Summary:
  """The summaries of all columns: of each task, mode and share of labels."""
  summary, reference = {}, grid.settings.reference
  for task, data in grid.tasks.items():
    everybody = np.concatenate(
      [part.user_ids(part.user_of_rows()) for part in data.splits.values()]
    )
    for mode in grid.modes_of(task):
      resplits = {
        split: resplit(data, split).splits for split in grid.splits_of(mode)
      }
      rows = {split: parts['test'].number for split, parts in resplits.items()}
      users = {split: everybody[numbers] for split, numbers in rows.items()}
      sizes = next(iter(resplits.values()))
      test_per_train = len(sizes['test'].number) / len(sizes['train'].number)
      for share in grid.shares:
        column = Column(task, share, METRICS[data.kind], mode)
        outcomes = _outcomes(grid, column, rows)
        if mode == FINE_TUNED or len(rows) == 1:
          summary[column] = summarise(
            outcomes, column.metric, users, reference=reference
          )
        else:
          summary[column] = summarise_splits(
            outcomes, test_per_train=test_per_train, reference=reference
          )
  return summary


def _outcomes(
  grid: Grid, column: Column, rows: Mapping[int, np.ndarray]
) -> dict[str, list[Outcome]]:
  """The outcomes of the cells of a column, by method."""
  outcomes = {}
  for name in grid.methods:
    cells = cells_of(grid, name, column.task, column.share, column.mode)
    if cells:
      outcomes[name] = [
        _outcome(grid, cell, column.metric, rows[cell.split]) for cell in cells
      ]
  return outcomes


def _outcome(grid: Grid, cell: Cell, metric: str, rows: np.ndarray) -> Outcome:
  """The outcome of a cell; refuses one that was tested on other rows."""
  path = grid.folder / cell.name / PREDICTIONS
  with np.load(path) as found:
    if not np.array_equal(found['example_id'], rows):
      raise SettingsError(
        f'{cell.name} was not tested on the test rows of split {cell.split}: '
        f'delete {cell.name} and {cell.name}.json in --workdir'
      )
  value = _result(grid, cell)['test'].get(metric)
  if value is None:
    raise SettingsError(
      f'{cell.name} diverged and has no {metric}: set a smaller '
      '--learning_rate in its flag file, and delete the folder'
    )
  return Outcome(value, cell.split, path)


def _result(grid: Grid, cell: Cell) -> dict[str, Any]:
  return json.loads((grid.folder / cell.name / RESULT).read_text())


def _results(
  grid: Grid, summary: Summary, points: Mapping[str, Any]
) -> dict[str, Any]:
  runs = plan(grid)
  records = [
    json.loads((grid.folder / f'{run.name}.json').read_text()) for run in runs
  ]
  # All flags, though a later comparison in this folder may change most.
  paths = Settings.mutable_names(grid.settings)
  return {
    'flags': grid.settings.flag_values(without=paths),
    'commits': sorted({record['commit'] for record in records}),
    'devices': sorted({record['device'] for record in records}),
    'versions': _versions(),
    'titles': {name: method.title for name, method in grid.methods.items()},
    'pretraining': [
      dataclasses.asdict(run)
      | {
        'steps': steps_taken(grid, run),
        'best': best_validation(grid, run),
      }
      for run in runs
      if isinstance(run, Pretraining)
    ],
    'cells': [
      dataclasses.asdict(run)
      # None for a baseline, whose result is the same in all columns.
      | {'mode': run.mode or None}
      # These would repeat the fields above, or name a folder.
      | {
        name: value
        for name, value in _result(grid, run).items()
        if name not in ('task', 'method', 'pretrained')
      }
      for run in runs
      if isinstance(run, Cell)
    ],
    'summary': [
      {**column._asdict(), 'methods': found}
      for column, found in summary.items()
    ],
    'sweeps': points,
  }


def main_rows(results: Mapping[str, Any]) -> dict[str, str]:
  """The titles of the rows, without those that are only in a sweep."""
  flags = results['flags']
  rhos = [float(rho) for rho in flags['rhos'].split(',') if rho]
  swept = set(rho_methods(rhos))
  if flags['augmentation_pairs'] == 'True':
    swept |= set(pair_methods())
  swept -= set(flags['methods'].split(','))
  return {
    name: title
    for name, title in results['titles'].items()
    if name not in swept
  }


def page_of(results: Mapping[str, Any]) -> str:
  """The tables in Markdown, from the content of `results.json`."""
  titles = results['titles']
  reference = results['flags']['reference']
  reference = titles.get(reference, reference)
  summary = {
    Column(*(part[field] for field in Column._fields)): part['methods']
    for part in results['summary']
  }
  main = main_rows(results)
  parts = [
    f'# {results["flags"]["dataset"]}\n',
    markdown(summary, main, reference=reference),
  ]
  swept = {name: titles[name] for name in titles if name not in main}
  if swept:
    parts += ['# Sweeps\n', markdown(summary, swept, reference=reference)]
  return '\n'.join(parts)


def _versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    # Some packages are optional.
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[name] = metadata.version(name)
  return found
