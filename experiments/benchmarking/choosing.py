"""Chooses the flags of speed by measuring them, one after the other."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarking.cases import OURS, Case, catalogue, few, items
from experiments.benchmarking.options import BenchmarkSettings
from experiments.benchmarking.report import Run
from experiments.flags.binder import SettingsError
from experiments.run.workdir import commit

CHOICES = {
  'microbatch': (0, 64, 256, 1024),
  'buckets': (1, 2, 4, 8),
  'table_update': ('dense', 'rows'),
}


def choosing_cases(
  settings: BenchmarkSettings,
  size: int,
  name: str,
  chosen: Mapping[str, Any],
) -> list[Case]:
  """One flag at each of its values.

  Args:
    size: of the catalogue.
    name: of the flag.
    chosen: the flags that were chosen before.
  """
  return [
    Case(
      f'Choosing --{name}, {items(size)}',
      f'--{name}={value}',
      OURS,
      catalogue(size) | chosen | {name: value},
    )
    for value in few(CHOICES[name], settings)
  ]


def fastest(cases: Sequence[Case], runs: Sequence[Run]) -> dict[str, Any]:
  """The changes of the case that has the highest median rate."""
  rates = {}
  for case in cases:
    found = [
      run.get('users_per_second', 0.0)
      for run in runs
      if (run['section'], run['name']) == (case.section, case.name)
    ]
    rates[statistics.median(found)] = case.changes
  if max(rates) == 0:
    raise SettingsError(f'{cases[0].section}: nothing could be measured')
  return rates[max(rates)]


def flagfile_of(
  settings: BenchmarkSettings, chosen: Mapping[str, Any], runs: Sequence[Run]
) -> str:
  """What was chosen, for --flagfile of `experiments.pretrain`.

  Args:
    settings: of the benchmark.
    chosen: values by flag.
    runs: of which the last that was measured says where.
  """
  run = next(run for run in reversed(runs) if 'error' not in run)
  lines = [
    f'# Measured by experiments.benchmark --gpu at {run["num_items"]:,} items, '
    f'{settings.batch_size}',
    f'# users a batch, on {run["device"]}, commit {commit()},',
    f'# jax {run["jax"]}: what was fastest'
    + (' of two values each.' if settings.quick else '.'),
    f'--dtype={settings.dtype}',
    *(f'--{name}={chosen[name]}' for name in CHOICES),
  ]
  return '\n'.join(lines) + '\n'
