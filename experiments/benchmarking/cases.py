"""The cases that the benchmark compares; each runs in a process of its own."""

import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.benchmarking.options import CATALOGUES, BenchmarkSettings
from experiments.flags.binder import SettingsError
from experiments.run.workdir import commit

# The results of one case in one round, by name.
Run = dict[str, Any]
# The section that compares ours with the reference.
PRE_TRAINING = 'Pre-training'
OURS = 'ours'
PADDED = 'reference, padded'
TRIMMED = 'reference, trimmed'
PYTORCH = 'PyTorch'
_GIB = 2**30
_GROWTH = {
  'batch_size': [128, 1024, 4096, 16_384],
  'max_length': [50, 100, 200, 500],
  'embed_dim': [64, 128, 256, 512],
  'num_items': [CATALOGUES[0], 65_536, CATALOGUES[1], 5_000_000],
  'cpu_devices': [1, 2, 4, 8],
}
# The values that --gpu tries for each flag, one flag after the other.
CHOICES = {
  'microbatch': (0, 64, 256, 1024),
  'buckets': (1, 2, 4, 8),
  'table_update': ('dense', 'rows'),
}


class Case(NamedTuple):
  """A configuration that is timed."""

  section: str  # title of its section in the report
  name: str  # name of the configuration
  who: str  # whose code is timed: OURS, PADDED, TRIMMED or PYTORCH
  changes: dict[str, Any]  # settings that replace those of the command


def main_cases(settings: BenchmarkSettings) -> list[list[Case]]:
  """For each catalogue size, ours and the reference, which take turns."""
  peers = (PADDED, TRIMMED) if settings.reference else ()
  return [
    [
      Case(PRE_TRAINING, _items(size), who, _catalogue(size))
      for who in (OURS, *peers)
    ]
    for size in settings.catalogues
  ]


def objective_cases(settings: BenchmarkSettings) -> list[list[Case]]:
  """For each catalogue and objective, ours and the one in plain PyTorch."""
  groups = []
  for size in settings.catalogues:
    for name in settings.objective_names:
      section = f'Objectives, {_items(size)}'
      changes = _catalogue(size) | {'objectives': (name,)}
      groups.append(
        [Case(section, name, who, changes) for who in (OURS, PYTORCH)]
      )
  return groups


def growth_cases(settings: BenchmarkSettings) -> Iterator[Case]:
  """Cases that change one flag at a time, from its least value upwards."""
  for name, values in _GROWTH.items():
    for value in _few(values, settings):
      change = _catalogue(settings.catalogues[0]) | {name: value}
      if name == 'num_items':
        change = _catalogue(value)
      if name == 'max_length':
        # Users have more behaviours, or a longer maximum would hardly matter.
        change['longest'] = value
      yield Case(f'Growth with --{name}', str(value), OURS, change)


def ablation_cases(
  settings: BenchmarkSettings, *, cpu: bool
) -> list[list[Case]]:
  """For each catalogue, the defaults and each optimisation switched off."""
  off = {'buckets': 1, 'microbatch': 0, 'table_update': 'dense'}
  if cpu:
    off['cpu_devices'] = 1
  changes = {'all on': {}}
  changes |= {f'--{name}={value}': {name: value} for name, value in off.items()}
  changes['all off'] = off
  return [
    [
      Case(
        f'Switched off, {_items(size)}', name, OURS, _catalogue(size) | change
      )
      for name, change in changes.items()
    ]
    for size in settings.catalogues
  ]


def choosing_cases(
  settings: BenchmarkSettings, size: int, name: str, chosen: dict[str, Any]
) -> list[Case]:
  """One case for each value of a flag, with the values chosen before it."""
  section = f'Choosing --{name}, {_items(size)}'
  before = _catalogue(size) | chosen
  return [
    Case(section, f'--{name}={value}', OURS, before | {name: value})
    for value in _few(CHOICES[name], settings)
  ]


def fastest(cases: Sequence[Case], runs: Sequence[Run]) -> dict[str, Any]:
  """The changes of the case with the highest median rate."""
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
  settings: BenchmarkSettings,
  chosen: Mapping[str, Any],
  runs: Sequence[Run],
) -> str:
  """The chosen flags as a file for --flagfile of `experiments.pretrain`."""
  run = next(run for run in reversed(runs) if 'error' not in run)
  lines = [
    f'# Measured by experiments.benchmark --gpu at {run["num_items"]:,} items, '
    f'{settings.batch_size}',
    f'# users a batch, on {run["device"]}, commit {commit()},',
    f'# jax {run["jax"]}: the fastest flags'
    + (' of two values each.' if settings.quick else '.'),
    f'--dtype={settings.dtype}',
    *(f'--{name}={chosen[name]}' for name in CHOICES),
  ]
  return '\n'.join(lines) + '\n'


def too_large(settings: BenchmarkSettings) -> str:
  """The reason not to run a case whose dense Adam would not fit into memory.

  It is empty if the case can be run.
  """
  meminfo = pathlib.Path('/proc/meminfo')
  on_host = settings.table_update == 'dense' and not settings.gpu
  if not on_host or not meminfo.exists():
    return ''
  devices = settings.cpu_devices or os.cpu_count() or 1
  table = 4 * settings.catalogues[0] * (settings.embed_dim or 64)
  # Parameters, gradients, moments and updates on each device, as measured.
  needed = 6 * table * devices / _GIB
  free = int(meminfo.read_text().split('MemAvailable:')[1].split()[0]) * 1024
  if needed < 0.8 * free / _GIB:
    return ''
  return f'left out, since it needs about {needed:.0f} GiB'


def _few(values: Sequence, settings: BenchmarkSettings) -> Sequence:
  """All values, or the first two with --quick."""
  return values[: 2 if settings.quick else None]


def _items(size: int) -> str:
  """The name of a catalogue."""
  return f'{size:,} items'


def _catalogue(size: int) -> dict[str, Any]:
  """The change of settings for a catalogue of this size."""
  return {'num_items': (str(size),)}
