"""What the benchmark compares: one case is one process."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.benchmarking.options import CATALOGUES, BenchmarkSettings

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


class Case(NamedTuple):
  """What is timed.

  Args:
    section: of the report.
    name: of the configuration.
    who: OURS, PADDED, TRIMMED or PYTORCH.
    changes: of the settings.
  """

  section: str
  name: str
  who: str
  changes: dict[str, Any]


def main_cases(settings: BenchmarkSettings) -> list[list[Case]]:
  """For each catalogue those that take turns: this project and the peers."""
  peers = [PADDED, TRIMMED][: 1 + settings.trim] if settings.reference else []
  return [
    [
      Case('Pre-training', items(size), who, catalogue(size))
      for who in (OURS, *peers)
    ]
    for size in settings.catalogues
  ]


def objective_cases(settings: BenchmarkSettings) -> list[list[Case]]:
  """For each objective of each catalogue ours, and that in plain PyTorch."""
  return [
    [
      Case(
        f'Objectives, {items(size)}',
        name,
        who,
        catalogue(size) | {'objectives': (name,)},
      )
      for who in (OURS, PYTORCH)
    ]
    for size in settings.catalogues
    for name in settings.objective_names
  ]


def growth_cases(settings: BenchmarkSettings) -> Iterator[Case]:
  """One flag changed at a time, from its least value on."""
  for name, values in _GROWTH.items():
    for value in few(values, settings):
      change = catalogue(settings.catalogues[0]) | {name: value}
      if name == 'num_items':
        change = catalogue(value)
      if name == 'max_length':
        # Users grow with the length, which would otherwise hardly matter.
        change['longest'] = value
      yield Case(f'Growth with --{name}', str(value), OURS, change)


def ablation_cases(
  settings: BenchmarkSettings, *, cpu: bool
) -> list[list[Case]]:
  """For each catalogue the default, and each optimisation switched off."""
  off = {'buckets': 1, 'microbatch': 0, 'table_update': 'dense'}
  if cpu:
    off['cpu_devices'] = 1
  changes = [{}, *({name: value} for name, value in off.items()), off]
  names = ['all on', *(f'--{name}={value}' for name, value in off.items())]
  names.append('all off')
  return [
    [
      Case(f'Switched off, {items(size)}', name, OURS, catalogue(size) | change)
      for name, change in zip(names, changes, strict=True)
    ]
    for size in settings.catalogues
  ]


def too_large(settings: BenchmarkSettings) -> str:
  """Why not to try dense Adam on a table, if it would not fit."""
  meminfo = pathlib.Path('/proc/meminfo')
  on_host = settings.table_update == 'dense' and not settings.gpu
  if not on_host or not meminfo.exists():
    return ''
  devices = settings.cpu_devices or os.cpu_count() or 1
  table = 4 * settings.catalogues[0] * (settings.embed_dim or 64)
  # Parameters, gradients, moments and updates: measured, of each device.
  needed = 6 * table * devices / _GIB
  free = int(meminfo.read_text().split('MemAvailable:')[1].split()[0]) * 1024
  if needed < 0.8 * free / _GIB:
    return ''
  return f'left out, since it needs some {needed:.0f} GiB'


def few(values: Sequence, settings: BenchmarkSettings) -> Sequence:
  """The values, or with --quick two of them."""
  return values[: 2 if settings.quick else None]


def items(size: int) -> str:
  """The name of a catalogue."""
  return f'{size:,} items'


def catalogue(size: int) -> dict[str, Any]:
  """The change of settings that takes a catalogue."""
  return {'num_items': (str(size),)}
