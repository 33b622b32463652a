"""Measures how fast pre-training is on this machine, and where time goes.

  python -m experiments.benchmark
  python -m experiments.benchmark --quick --num_items=4048 --json=quick.json
  python -m experiments.benchmark --inference --ablation \
    --reference=CHECKOUT --reference_python=PYTHON_WITH_TORCH
  python -m experiments.benchmark --objectives=all \
    --reference_python=PYTHON_WITH_TORCH
  python -m experiments.benchmark --growth
  python -m experiments.benchmark --gpu \
    --reference=CHECKOUT --reference_python=PYTHON_WITH_TORCH

Configurations that are compared take turns, each in a process of its own.
Nothing else should run on the machine meanwhile.
"""

from experiments.benchmarking.options import BenchmarkSettings
from experiments.run.command import run

if __name__ == '__main__':
  # Before the slow imports below, so that --help and bad flags answer at once.
  run('experiments.benchmark', BenchmarkSettings)

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from experiments.benchmarking import cases
from experiments.benchmarking.cases import Case, Run
from experiments.benchmarking.measure import measure
from experiments.benchmarking.options import check
from experiments.benchmarking.processes import run_case
from experiments.benchmarking.report import draw_growth, report
from experiments.flags.binder import SettingsError
from experiments.flags.flag_files import differing_flags
from experiments.run.process import print_line, print_result_line
from experiments.run.workdir import (
  atomic_write,
  commit,
  reading_json,
  writing,
)

# Flags that may change before --growth or --objectives is resumed.
_MUTABLE = (
  'workdir',
  'json',
  'quiet',
  'compilation_cache',
  'timeout',
  'reference_python',
  'rounds',
)


def main(settings: BenchmarkSettings) -> list[Run]:
  """Measures what the flags ask for, prints it, and returns it."""
  # In a flag file there may be flags that this measurement cannot use.
  unused = settings.without_effect()
  defaults = {name: getattr(BenchmarkSettings, name) for name in unused}
  settings = dataclasses.replace(settings, **defaults)
  check(settings)
  if settings.gpu:
    dtype = settings.dtype or 'bfloat16'
    settings = dataclasses.replace(settings, dtype=dtype)
  if not settings.json:
    folder = settings.json_file.parent
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
  if settings.mode == 'quick':
    found = measure(settings)
    _write(settings, found)
    runs = [_name(cases.main_cases(settings)[0][0], 0) | found]
  else:
    runs = _run_all(settings)
  print_line(f'{_title(runs)}\n{report(runs)}')
  print_result_line(str(settings.json_file))
  return runs


def _run_all(settings: BenchmarkSettings) -> list[Run]:
  """Runs all cases, and writes the results to disk after each of them.

  The cases of a group take turns: each is run once in each round. Cases whose
  results are in the file already are skipped.
  """
  # Otherwise this process would take GPU memory from those that it starts.
  jax.config.update('jax_platforms', 'cpu')
  runs = measured_before(settings) if settings.is_resumable else []
  rounds = settings.rounds or (1 if settings.growth else 3)
  # A new cache, so that the first run of each case compiles its programs.
  with tempfile.TemporaryDirectory() as cache:
    for group in _groups(settings, runs):
      for round, case in itertools.product(range(rounds), group):
        name = _name(case, round)
        if any(name.items() <= run.items() for run in runs):
          continue
        # Without a cache the peak memory of growth includes compilation.
        found = run_case(
          case, settings, cache='off' if settings.growth else cache
        )
        rate = found.get('users_per_second')
        print_line(
          f'{case.section}, {case.name}, {case.who}, round {round + 1} of '
          f'{rounds}: ' + (f'{rate:,.0f} users/s' if rate else found['error'])
        )
        runs.append(name | found)
        flags = settings.flag_values()
        _write(settings, {'flags': flags, 'commit': commit(), 'runs': runs})
  if settings.growth:
    draw_growth(runs, settings.json_file.parent)
  return runs


def _groups(
  settings: BenchmarkSettings, runs: list[Run]
) -> Iterator[Iterable[Case]]:
  """Yields groups of cases that take turns.

  Args:
    runs: the results of the groups before, on which later groups may depend.
  """
  if settings.mode == 'growth':
    yield cases.growth_cases(settings)
  elif settings.mode == 'gpu':
    yield from _groups_on_gpu(settings, runs)
  elif settings.mode == 'objectives':
    yield from cases.objective_cases(settings)
  else:
    yield from cases.main_cases(settings)
    if settings.ablation:
      cpu = all(run.get('backend', 'cpu') == 'cpu' for run in runs)
      yield from cases.ablation_cases(settings, cpu=cpu)


def _groups_on_gpu(
  settings: BenchmarkSettings, runs: list[Run]
) -> Iterator[Iterable[Case]]:
  """For each catalogue, chooses flags, and then compares to the reference."""
  for size, group in zip(
    settings.catalogues, cases.main_cases(settings), strict=True
  ):
    chosen: dict[str, Any] = {}
    for name in cases.CHOICES:
      tried = cases.choosing_cases(settings, size, name, chosen)
      yield tried
      chosen = cases.fastest(tried, runs)
    path = settings.json_file.with_name(f'chosen_{size}.flags')
    atomic_write(path, cases.flagfile_of(settings, chosen, runs))
    print_result_line(f'--flagfile={path}')
    yield [case._replace(changes=chosen) for case in group]


def measured_before(settings: BenchmarkSettings) -> list[Run]:
  """Returns the successful runs in the file of results, if there is one.

  Raises:
    SettingsError: If the file is of another commit, of other flags, or not
      written by this command.
  """
  path = settings.json_file
  if not path.exists():
    return []
  with reading_json(path, writer=f'--{settings.mode}') as results:
    runs, code, before = results['runs'], results['commit'], results['flags']
    differing = differing_flags(before, settings.flag_values(), _MUTABLE)
  if code != commit():
    differing = f'the commit was {code}, is {commit()}'
  if differing:
    raise SettingsError(
      f'{path} holds results of other settings: {differing}. Choose another '
      '--workdir, or remove it'
    )
  return [run for run in runs if 'error' not in run]


def _name(case: Case, round: int) -> dict[str, Any]:
  """What tells a run from others in the file of results."""
  names = {'section': case.section, 'name': case.name, 'who': case.who}
  return names | {'round': round}


def _title(runs: list[Run]) -> str:
  """The commit, the version of JAX and the device of the results."""
  names = ('jax', 'device', 'devices', 'cores')
  ours = [found for found in runs if found['who'] == cases.OURS]
  used = {'commit': commit()} | {
    name: found[name] for found in ours for name in names if name in found
  }
  return '\n# ' + ', '.join(f'{name} {value}' for name, value in used.items())


def _write(settings: BenchmarkSettings, values: dict[str, Any]) -> None:
  atomic_write(settings.json_file, json.dumps(values, indent=1) + '\n')
