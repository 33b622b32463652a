"""What a benchmark had measured before it was stopped, to go on from there."""

import json

from experiments.benchmarking.options import BenchmarkSettings
from experiments.benchmarking.report import Run
from experiments.flags.binder import SettingsError
from experiments.run.workdir import commit, differing_flags

_FREE = (
  'workdir',
  'json',
  'quiet',
  'compilation_cache',
  'timeout',
  'reference_python',
  'rounds',
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
      f'{path} is not what --{settings.mode} writes: remove it, or choose '
      'another --workdir'
    ) from error
  if code != commit():
    differing = f'the commit was {code}, is {commit()}'
  if differing:
    raise SettingsError(
      f'{path} holds what was measured otherwise: {differing}. Choose another '
      '--workdir, or remove it'
    )
  return [run for run in runs if 'error' not in run]
