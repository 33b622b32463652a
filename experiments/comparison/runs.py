"""The runs of a comparison: made once each, and found again.

Every run has a folder, and beside it `FOLDER.json`, written when it is done:
the flags that it was made with, and how long it took, where, by which commit.
"""

import json
import pathlib
import time
from typing import Any

import jax

from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.data import DataError
from experiments.comparison.commands import command_of, source_of
from experiments.comparison.grid import Grid, Pretraining, Run, Vectors
from experiments.flags.binder import Settings, SettingsError
from experiments.run.process import inner_run
from experiments.run.workdir import atomic_write, commit, differing_flags

# Free to change in a run that goes on, but not in one that is compared.
_LENGTH_OF_A_RUN = {'num_epochs', 'num_steps', 'patience'}
# Where a run starts: the flags of that run count, and not its place.
_SOURCES = {'init_from', 'pretrained', 'vectors'}


def make(grid: Grid, run: Run) -> tuple[dict[str, Any], bool]:
  """Makes a run, unless it is done; its record, and whether it was made now.

  Raises:
    SettingsError: it was made with other flags, or cannot be made; names it.
  """
  record = found(grid, run)
  if record is not None:
    return record, False
  command, settings = command_of(grid, run)
  folder = grid.folder / run.name
  resumed, start = folder.exists(), time.monotonic()
  try:
    with inner_run():
      command(settings)
  except (SettingsError, DataError, CheckpointError) as error:
    raise SettingsError(f'{run.name}: {error}') from error
  except Exception as error:
    error.add_note(f'This happened in {run.name}.')
    raise
  record = {
    'flags': _flags_of(grid, run, settings),
    # Of a resumed run only those since it was.
    'seconds': round(time.monotonic() - start, 1),
    'resumed': resumed,
    'device': jax.devices()[0].device_kind,
    'commit': commit(),
  }
  atomic_write(_record_path(grid, run), json.dumps(record, indent=2) + '\n')
  return record, True


def found(grid: Grid, run: Run) -> dict[str, Any] | None:
  """The record of a run that is done; None if it is not."""
  if not is_made(grid, run):
    return None
  record = json.loads(_record_path(grid, run).read_text())
  _, settings = command_of(grid, run)
  flags = _flags_of(grid, run, settings)
  differing = differing_flags(record['flags'], flags)
  if differing:
    raise SettingsError(
      f'{run.name} was made with other flags: {differing}. Choose '
      f'another --workdir, or delete {run.name} and {run.name}.json there'
    )
  return record


def is_made(grid: Grid, run: Run) -> bool:
  """Whether a run is done, by whatever flags."""
  return _record_path(grid, run).exists() and (grid.folder / run.name).is_dir()


def _record_path(grid: Grid, run: Run) -> pathlib.Path:
  return grid.folder / f'{run.name}.json'


def _flags_of(grid: Grid, run: Run, settings: Settings) -> dict[str, str]:
  """The flags that the outcome of a run depends on.

  And the version of the data, since files can change while flags do not.
  """
  free = settings.names_free_to_change() - _LENGTH_OF_A_RUN
  flags = settings.flag_values(without=free | _SOURCES)
  flags['dataset'] = (
    grid.pretrain_data
    if isinstance(run, Pretraining)
    else run.users
    if isinstance(run, Vectors)
    else grid.tasks[run.task].name
  )
  source = source_of(grid, run)
  if source is None:
    return flags
  record = json.loads(_record_path(grid, source).read_text())
  return flags | {
    name if ':' in name else f'{source.name}:{name}': value
    for name, value in record['flags'].items()
  }
