"""The pictures of how speed and memory grow."""

import pathlib
import statistics
from collections.abc import Sequence

from experiments.benchmarking.report import Run
from experiments.run.pictures import (
  Lines,
  MissingPlotsError,
  draw_lines,
  save,
)
from experiments.run.process import tell


def draw_growth(runs: Sequence[Run], folder: pathlib.Path) -> None:
  """Draws `growth_NAME` for each flag, as PNG and SVG: users/s, and memory.

  What was not measured is a cross. Without Matplotlib it only says so.
  """
  try:
    for section in dict.fromkeys(run['section'] for run in runs):
      own = [run for run in runs if run['section'] == section]
      name = section.rpartition('--')[2]
      memory = (
        'device_peak_mib' if own[0].get('device_peak_mib') else 'peak_mib'
      )
      panels = [
        _panel('users/s', own, 'users_per_second'),
        _panel('peak memory, MiB', own, memory),
      ]
      sizes = [int(size) for size in dict.fromkeys(run['name'] for run in own)]
      figure = draw_lines(panels, label=f'--{name}', sizes=sizes)
      save(figure, folder / f'growth_{name}')
  except MissingPlotsError as error:
    tell(f'no pictures: {error}')


def _panel(title: str, runs: Sequence[Run], name: str) -> Lines:
  """The median of the rounds at each size."""
  found = {int(run['name']): [] for run in runs}
  for run in runs:
    found[int(run['name'])] += [run[name]] if run.get(name) else []
  points = [
    (size, statistics.median(values or [float('nan')]))
    for size, values in found.items()
  ]
  return Lines(title, {'': points})
