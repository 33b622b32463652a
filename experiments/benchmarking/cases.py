"""What the benchmark compares: one case is one process."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.benchmarking.options import CATALOGUES, BenchmarkSettings

OURS = 'ours'
PADDED = 'reference, padded'
TRIMMED = 'reference, trimmed'
_GIB = 2**30


class Case(NamedTuple):
  """What is timed.

  Args:
    section: of the report.
    name: of the configuration.
    who: OURS, PADDED or TRIMMED.
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
      Case('Pre-training', _items(size), who, _catalogue(size))
      for who in (OURS, *peers)
    ]
    for size in settings.catalogues
  ]


def growth_cases(settings: BenchmarkSettings) -> Iterator[Case]:
  """One thing changed at a time."""
  size = settings.catalogues[0]
  changes = [{'batch_size': n} for n in (64, 128, 256, 512)]
  # Users grow with the length, which would otherwise hardly matter.
  changes += [{'max_length': n, 'longest': n} for n in (50, 100, 150, 200)]
  changes += [{'embed_dim': n} for n in (32, 64, 128)]
  for change in changes:
    name, value = next(iter(change.items()))
    yield Case(
      f'Growth with --{name}', str(value), OURS, _catalogue(size) | change
    )
  for size in (CATALOGUES[0], 65_536, CATALOGUES[1], 5_000_000):
    for update in ('dense', 'rows'):
      change = _catalogue(size) | {'table_update': update}
      name = f'{_items(size)}, {update}'
      yield Case('Growth with --num_items', name, OURS, change)


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
      Case(
        f'Switched off, {_items(size)}', name, OURS, _catalogue(size) | change
      )
      for name, change in zip(names, changes, strict=True)
    ]
    for size in settings.catalogues
  ]


def too_large(settings: BenchmarkSettings) -> str:
  """Why not to try dense Adam on a table, if it would not fit."""
  meminfo = pathlib.Path('/proc/meminfo')
  if settings.table_update != 'dense' or not meminfo.exists():
    return ''
  devices = settings.cpu_devices or os.cpu_count() or 1
  table = 4 * settings.catalogues[0] * (settings.embed_dim or 64)
  # Parameters, gradients, moments and updates: measured, of each device.
  needed = 6 * table * devices / _GIB
  free = int(meminfo.read_text().split('MemAvailable:')[1].split()[0]) * 1024
  if needed < 0.8 * free / _GIB:
    return ''
  return f'left out, since it needs some {needed:.0f} GiB'


def _items(size: int) -> str:
  return f'{size:,} items'


def _catalogue(size: int) -> dict[str, Any]:
  return {'num_items': (str(size),)}
