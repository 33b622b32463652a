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
import json
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from experiments.benchmarking.cases import (
  CHOICES,
  OURS,
  Case,
  ablation_cases,
  choosing_cases,
  fastest,
  flagfile_of,
  growth_cases,
  main_cases,
  objective_cases,
)
from experiments.benchmarking.measure import measure
from experiments.benchmarking.options import check
from experiments.benchmarking.processes import run_case
from experiments.benchmarking.report import draw_growth, report
from experiments.flags.binder import SettingsError
from experiments.run.process import print_line, print_result_line
from experiments.run.workdir import (
  atomic_write,
  commit,
  differing_flags,
  reading_json,
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


def main(settings: BenchmarkSettings) -> list[dict[str, Any]]:
  """Measures what the flags ask for, prints it, and returns it."""
  check(settings)
  if not settings.json:
    try:
      settings.json_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise SettingsError(
        f'--workdir={settings.workdir} cannot be created ({error.strerror}): '
        'choose another folder'
      ) from error
  if settings.mode == 'quick':
    found = measure(settings)
    _write(settings.json_file, found)
    case = main_cases(settings)[0][0]
    runs = [_named(case, 0, found)]
  else:
    runs = _run_all(settings)
  print_line(f'{_title(runs)}\n{report(runs)}')
  print_result_line(str(settings.json_file))
  return runs


def _run_all(settings: BenchmarkSettings) -> list[dict[str, Any]]:
  """Runs all cases, and writes the results to disk after each of them."""
  # Otherwise this process would take GPU memory from those that it starts.
  jax.config.update('jax_platforms', 'cpu')
  runs: list[dict[str, Any]] = []
  # A new cache, so that the first run of each case compiles its programs.
  with tempfile.TemporaryDirectory() as cache:
    if settings.growth:
      runs += measured_before(settings)
      # No cache: the peak memory of each case includes compilation.
      _run_interleaved(growth_cases(settings), settings, 'off', runs)
      draw_growth(runs, settings.json_file.parent)
    elif settings.objectives:
      runs += measured_before(settings)
      for group in objective_cases(settings):
        _run_interleaved(group, settings, cache, runs)
    elif settings.gpu:
      _compare_on_gpu(settings, cache, runs)
    else:
      _compare(settings, cache, runs)
  return runs


def measured_before(settings: BenchmarkSettings) -> list[dict[str, Any]]:
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


def _compare(
  settings: BenchmarkSettings, cache: str, runs: list[dict[str, Any]]
) -> None:
  """Times ours against the reference and, with --ablation, against itself."""
  for group in main_cases(settings):
    _run_interleaved(group, settings, cache, runs)
  if settings.ablation:
    plain = dataclasses.replace(settings, profile=False)
    cpu = all(run.get('backend', 'cpu') == 'cpu' for run in runs)
    for group in ablation_cases(settings, cpu=cpu):
      _run_interleaved(group, plain, cache, runs)


def _compare_on_gpu(
  settings: BenchmarkSettings, cache: str, runs: list[dict[str, Any]]
) -> None:
  """Chooses flags for each catalogue, then times ours against the reference."""
  settings = dataclasses.replace(settings, dtype=settings.dtype or 'bfloat16')
  plain = dataclasses.replace(settings, profile=False)
  for size, group in zip(
    settings.catalogues, main_cases(settings), strict=True
  ):
    chosen: dict[str, Any] = {}
    for name in CHOICES:
      cases = choosing_cases(settings, size, name, chosen)
      _run_interleaved(cases, plain, cache, runs)
      chosen = fastest(cases, runs)
    path = settings.json_file.with_name(f'chosen_{size}.flags')
    atomic_write(path, flagfile_of(settings, chosen, runs))
    print_result_line(f'--flagfile={path}')
    group = [case._replace(changes=chosen) for case in group]
    _run_interleaved(group, settings, cache, runs)


def _run_interleaved(
  cases: Iterable[Case],
  settings: BenchmarkSettings,
  cache: str,
  runs: list[dict[str, Any]],
) -> None:
  """Runs all cases once in each round, and appends their results to `runs`.

  Cases that `runs` already holds are skipped.
  """
  cases, rounds = list(cases), settings.rounds or (1 if settings.growth else 3)
  names = ('section', 'name', 'who', 'round')
  done = {tuple(run[name] for name in names) for run in runs}
  for round in range(rounds):
    for case in cases:
      if (case.section, case.name, case.who, round) in done:
        continue
      found = run_case(case, settings, cache=cache)
      rate = found.get('users_per_second')
      print_line(
        f'{case.section}, {case.name}, {case.who}, round {round + 1} of '
        f'{rounds}: ' + (f'{rate:,.0f} users/s' if rate else found['error'])
      )
      runs.append(_named(case, round, found))
      results = {
        'flags': settings.flag_values(),
        'commit': commit(),
        'runs': runs,
      }
      _write(settings.json_file, results)


def _named(case: Case, round: int, found: dict[str, Any]) -> dict[str, Any]:
  name = {'section': case.section, 'name': case.name, 'who': case.who}
  return name | {'round': round} | found


def _title(runs: Sequence[dict[str, Any]]) -> str:
  """The commit, the version of JAX and the device of the results."""
  names = ('jax', 'device', 'devices', 'cores')
  ours = [found for found in runs if found['who'] == OURS]
  used = {'commit': commit()} | {
    name: found[name] for found in ours for name in names if name in found
  }
  return '\n# ' + ', '.join(f'{name} {value}' for name, value in used.items())


def _write(path: pathlib.Path, values: dict[str, Any]) -> None:
  atomic_write(path, json.dumps(values, indent=1) + '\n')
