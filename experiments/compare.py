"""Compares pre-training methods on all tasks: the table of the paper.

  python -m experiments.compare --flagfile=FILE

with a FILE like experiments/configs/quickstart_compare.flags.

Every run is carried out once and then reused. So a stopped comparison resumes
with the same command, and methods can be added to a finished comparison.
--dry_run lists the missing runs, and estimates how long they will take.
"""

from experiments.comparison.options import CompareSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.compare', CompareSettings)

import collections
import datetime
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.comparison.commands import (
  is_finished,
  make,
  needs_of,
  record_of,
)
from experiments.comparison.grid import Cell, Grid, Run, plan
from experiments.comparison.methods import FINE_TUNED
from experiments.comparison.report import write_report
from experiments.comparison.setup import read_grid
from experiments.run.process import (
  forget_compiled,
  print_line,
  print_result_line,
)
from experiments.run.workdir import opened_workdir, refuse_other_run


def main(settings: CompareSettings) -> dict[str, Any]:
  """Carries out all missing runs.

  Returns:
    The content of `results.json`. With --dry_run the missing runs are only
    listed, and their names are returned as 'missing'.
  """
  # Before the tasks, which may take long to prepare.
  refuse_other_run(settings)
  grid = read_grid(settings)
  if settings.dry_run:
    return {'missing': print_missing(grid, plan(grid))}
  with opened_workdir(settings):
    make_all(grid, plan(grid))
    return write_report(grid)


def make_all(grid: Grid, runs: Sequence[Run]) -> None:
  """Carries out the runs in order, and prints the estimated time left."""
  seconds = collections.defaultdict(list)
  for number, one in enumerate(runs, 1):
    record, is_new = make(grid, one)
    if not record['resumed']:
      seconds[one.timing_group].append(record['seconds'])
    # Probes are so fast that all splits of one share a line.
    is_probe = isinstance(one, Cell) and one.is_frozen
    following = runs[number].timing_group if number < len(runs) else ''
    is_printed = not is_probe or one.timing_group != following
    if is_new and is_printed:
      missing = [run for run in runs[number:] if not is_finished(grid, run)]
      print_line(
        f'[{number}/{len(runs)}] {one.name}: {record["seconds"]:.0f} s'
        f'{" since it was resumed" if record["resumed"] else ""}; '
        f'{_in_words(*time_left(seconds, missing), " left")}'
      )
    # The other cells compile only small programs, which the next ones use too.
    if is_new and (not isinstance(one, Cell) or one.mode == FINE_TUNED):
      forget_compiled()


def print_missing(grid: Grid, runs: Sequence[Run]) -> list[str]:
  """Prints the missing runs and their estimated time; returns their names."""
  seconds, missing = collections.defaultdict(list), []
  for one in runs:
    if not is_finished(grid, one):
      missing.append(one)
    # The flags of a run are known only if all runs that it needs are finished.
    elif needs_of(grid, one).isdisjoint(missing):
      record = record_of(grid, one)
      if not record['resumed']:
        seconds[one.timing_group].append(record['seconds'])
  for one in missing:
    print_result_line(one.name + _about(seconds, [one]))
  known = sum(one.timing_group in seconds for one in missing)
  text = f'{len(missing):,} of {len(runs):,} runs are missing'
  about = _about(seconds, missing)
  if about:
    text += (
      f'{about}, by the time of finished runs, which are of the same kind for '
      f'{known:,} of them'
    )
  elif missing:
    text += '; their time can be estimated when some runs are finished'
  print_result_line(text)
  return [one.name for one in missing]


def _about(seconds: Mapping[str, Sequence[float]], runs: Sequence[Run]) -> str:
  """The estimated time of runs, if it can be estimated."""
  left, unknown = time_left(seconds, runs)
  return f': {_in_words(left, unknown)}' if unknown < len(runs) else ''


def _in_words(seconds: float, unknown: int, left: str = '') -> str:
  more = f', and {unknown:,} without an estimate' if unknown else ''
  return f'about {datetime.timedelta(seconds=round(seconds))}{left}{more}'


def time_left(
  seconds: Mapping[str, Sequence[float]], runs: Sequence[Run]
) -> tuple[float, int]:
  """Estimates how long runs will take, from the times of finished runs.

  The estimate of a run is the mean over the finished runs of its
  `timing_group`, or else of the groups that share the longest path prefix with
  it: other stages for pre-training, the same column for a cell.
  Resumed runs are not used, since their earlier time is not known.

  Args:
    seconds: times of finished runs, by `timing_group`.
    runs: the runs to make.

  Returns:
    The estimated seconds, and the number of runs without any estimate.
  """
  left, unknown = 0.0, 0
  groups = collections.Counter(one.timing_group for one in runs)
  for group, count in groups.items():
    shared = collections.defaultdict(list)
    for name, taken in seconds.items():
      path = posixpath.commonpath([name, group])
      shared[len(path)].append(sum(taken) / len(taken))
    if max(shared, default=0):
      near = shared[max(shared)]
      left += sum(near) / len(near) * count
    else:
      unknown += count
  return left, unknown
