"""How speed and memory grow: what was measured before, and the pictures."""

import json
import pathlib
from collections.abc import Sequence

from experiments.benchmarking.options import BenchmarkSettings
from experiments.benchmarking.report import Run
from experiments.flags.binder import SettingsError
from experiments.run.pictures import (
  Lines,
  MissingPlotsError,
  draw_lines,
  save,
)
from experiments.run.process import tell
from experiments.run.workdir import commit, differing_flags

_FREE = (
  'workdir',
  'json',
  'quiet',
  'compilation_cache',
  'timeout',
  'reference_python',
)


def measured_before(settings: BenchmarkSettings) -> list[Run]:
  """The runs of the file of the results that succeeded, if there is one."""
  path = settings.json_file
  if not path.exists():
    return []
  try:
    whole = json.loads(path.read_bytes())
    runs, code, before = whole['runs'], whole['commit'], whole['flags']
    differing = differing_flags(before, settings.flag_values(), _FREE)
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise SettingsError(
      f'{path} is not what --growth writes: remove it, or choose another '
      '--workdir'
    ) from error
  if code != commit():
    differing = f'the commit was {code}, is {commit()}'
  if differing:
    raise SettingsError(
      f'{path} holds what was measured otherwise: {differing}. Choose another '
      '--workdir, or remove it'
    )
  return [run for run in runs if 'error' not in run]


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
      sizes = [int(run['name']) for run in own]
      figure = draw_lines(panels, label=f'--{name}', sizes=sizes)
      save(figure, folder / f'growth_{name}')
  except MissingPlotsError as error:
    tell(f'no pictures: {error}')


def _panel(title: str, runs: Sequence[Run], name: str) -> Lines:
  points = [(int(run['name']), run.get(name) or float('nan')) for run in runs]
  return Lines(title, {'': points})
