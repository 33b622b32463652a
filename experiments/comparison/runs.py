"""The runs of a comparison: planned, made once each, and found again.

Every run has a folder, and beside it `FOLDER.json`, written when it is done:
the flags that it was made with, and how long it took, where, by which commit.
"""

import dataclasses
import functools
import json
import math
import pathlib
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from adaptssr_jax.checkpoint_files import CheckpointError
from adaptssr_jax.data import DataError
from adaptssr_jax.models import UserEncoder
from experiments import baselines, finetune, pretrain
from experiments.collapse import collapse_warning
from experiments.comparison.grid import Cell, Grid, Pretraining
from experiments.settings import Settings, SettingsError
from experiments.workdir import METRICS, differing_flags, write_whole

# On few labels an epoch is few updates: there are more epochs, up to so many
# times as many.
LONGEST = 10
# Free to change in a run that goes on, but not in one that is compared.
_LENGTH_OF_A_RUN = {'num_epochs', 'num_steps', 'patience'}


def make(grid: Grid, run: Pretraining | Cell) -> tuple[dict[str, Any], bool]:
  """Makes a run, unless it is done already.

  Returns:
    Its record, and whether it was made now.

  Raises:
    SettingsError: it was made with other flags, or cannot be made; names it.
  """
  command, settings = _command(grid, run)
  # In full, with the version: no flag need tell that files were changed.
  flags = _flags_that_count(settings) | {'dataset': _data_name(grid, run)}
  flags |= _flags_of_source(grid, run)
  folder = grid.folder / run.name
  path = folder.with_name(f'{folder.name}.json')
  if path.exists() and folder.is_dir():
    record = json.loads(path.read_text())
    _refuse_other_flags(run.name, record['flags'], flags)
    return record, False
  resumed, start = folder.exists(), time.monotonic()
  try:
    command(settings)
  except (SettingsError, DataError, CheckpointError) as error:
    raise SettingsError(f'{run.name}: {error}') from error
  except Exception as error:
    error.add_note(f'This happened in {run.name}.')
    raise
  record = {
    'flags': flags,
    # Of a resumed run only those since it was.
    'seconds': round(time.monotonic() - start, 1),
    'resumed': resumed,
    'device': jax.devices()[0].device_kind,
    'commit': commit(),
  }
  write_whole(path, json.dumps(record, indent=2) + '\n')
  return record, True


def _command(
  grid: Grid, run: Pretraining | Cell
) -> tuple[Callable[[Any], Any], Settings]:
  """The command that makes a run, and its settings."""
  if isinstance(run, Pretraining):
    return pretrain.main, _pretrain_settings(grid, run)
  fields = {
    'workdir': str(grid.folder / run.name),
    'task': run.task,
    'split_seed': run.split,
    'train_users': _rows_of_share(grid, run),
  } | grid.data
  method = grid.methods[run.method]
  if method.baseline:
    default = UserEncoder.max_length
    return baselines.main, baselines.BaselineSettings(
      method=method.baseline,
      max_length=grid.shape().get('max_length', default),
      **fields,
    )
  settings = grid.finetuning[grid.tasks[run.task].kind]
  # As many updates as on all labels, and as many of them without progress.
  longer = min(1 / run.share, LONGEST)
  fields |= {
    name: math.ceil(getattr(settings, name) * longer)
    for name in ('num_epochs', 'patience')
  }
  source = _source(grid, run)
  # The files may name runs of their own.
  fields['pretrained'] = str(grid.folder / source.name) if source else ''
  if not source:
    # The same encoder as all other rows have, unless its file says another.
    fields |= grid.shape() | settings.encoder_fields()
  return finetune.main, dataclasses.replace(settings, seed=run.seed, **fields)


def _pretrain_settings(
  grid: Grid, run: Pretraining
) -> pretrain.PretrainSettings:
  method = grid.method(run.method)
  fields = dict(method.changes)
  source = _source(grid, run)
  fields['init_from'] = str(grid.folder / source.name) if source else ''
  if not source:
    fields |= grid.shape()
  if method.steps_of:
    other = Pretraining(method.steps_of, run.seed)
    fields |= {'num_steps': steps_taken(grid, other), 'patience': 0}
  return dataclasses.replace(
    grid.pretraining[method.flags],
    workdir=str(grid.folder / run.name),
    seed=run.seed,
    **fields | grid.data,
  )


def _source(grid: Grid, run: Pretraining | Cell) -> Pretraining | None:
  """The run whose encoder this one starts from."""
  method = grid.method(run.method)
  if isinstance(run, Pretraining):
    return Pretraining(method.after, run.seed) if method.after else None
  if not method.flags:
    return None
  place = grid.seeds.index(run.seed) % len(grid.pretrain_seeds)
  return Pretraining(run.method, grid.pretrain_seeds[place])


def _rows_of_share(grid: Grid, cell: Cell) -> int:
  """`--train_users` of a cell; 0 stands for all."""
  if cell.share == 1:
    return 0
  rows = len(grid.tasks[cell.task].splits['train'].items)
  return max(1, round(cell.share * rows))


def steps_taken(grid: Grid, run: Pretraining) -> int:
  """The updates that a finished pre-training run made."""
  return _logged(grid, run)[-1]['step']


def best_validation(grid: Grid, run: Pretraining) -> dict[str, float]:
  """What was logged of the state which fine-tuning starts from.

  Where the loss on the validation users was least, of the states that have not
  collapsed; of the last state if all of them have.
  """
  lines = [line for line in _logged(grid, run) if 'validation_loss' in line]
  sound = [line for line in lines if not collapse_of(grid, run.method, line)]
  return min(
    sound or lines[-1:], key=lambda line: line['validation_loss'], default={}
  )


def collapse_of(grid: Grid, method: str, line: Mapping[str, float]) -> str:
  """What is wrong with the user vectors by a line of `metrics.jsonl`, if so."""
  values = {
    name.removeprefix('validation_'): value for name, value in line.items()
  }
  if 'mean_cosine' not in values:
    return ''
  settings = grid.pretraining[grid.method(method).flags]
  return collapse_warning(values, objective=settings.objective)


def _logged(grid: Grid, run: Pretraining) -> list[dict[str, Any]]:
  text = (grid.folder / run.name / METRICS).read_text()
  return [json.loads(line) for line in text.splitlines()]


def _data_name(grid: Grid, run: Pretraining | Cell) -> str:
  if isinstance(run, Pretraining):
    return grid.pretrain_data
  return grid.tasks[run.task].name


def _flags_that_count(settings: Settings) -> dict[str, str]:
  """Those that the outcome depends on, except for where a run starts."""
  free = settings.names_free_to_change() - _LENGTH_OF_A_RUN
  free |= {'init_from', 'pretrained'}
  return settings.flag_values(without=free)


def _flags_of_source(grid: Grid, run: Pretraining | Cell) -> dict[str, str]:
  source = _source(grid, run)
  if source is None:
    return {}
  path = grid.folder / f'{source.name}.json'
  flags = json.loads(path.read_text())['flags']
  return {
    name if ':' in name else f'{source.name}:{name}': value
    for name, value in flags.items()
  }


def _refuse_other_flags(
  name: str, before: Mapping[str, str], now: Mapping[str, str]
) -> None:
  differing = differing_flags(before, now)
  if differing:
    raise SettingsError(
      f'{name} was made with other flags: {differing}. Choose '
      f'another --workdir, or delete {name} and {name}.json there'
    )


@functools.cache
def commit() -> str:
  """The commit of the code, as `git describe` says, if it is a checkout."""
  command = ['git', 'describe', '--always', '--dirty']
  try:
    done = subprocess.run(
      command,
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
  return done.stdout.strip()
