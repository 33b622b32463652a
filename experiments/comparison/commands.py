"""The command that makes each run of a comparison, and its flags."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from adaptssr_jax.encoder.model import UserEncoder
from experiments import baselines, finetune, pretrain
from experiments.comparison import frozen
from experiments.comparison.grid import (
  Cell,
  Grid,
  Pretraining,
  Run,
  Vectors,
  vectors_of,
)
from experiments.comparison.methods import FROZEN_WITH_BAG
from experiments.comparison.training_logs import steps_taken
from experiments.flags.binder import Settings

# On few labels an epoch is few updates: there are more epochs, up to so many
# times as many.
LONGEST = 10


def command_of(grid: Grid, run: Run) -> tuple[Callable[[Any], Any], Settings]:
  """The command that makes a run, and its settings."""
  if isinstance(run, Pretraining):
    return pretrain.main, _pretrain_settings(grid, run)
  if isinstance(run, Vectors):
    return _encoding(grid, run)
  if run.is_frozen:
    return _reading(grid, run)
  if grid.method(run.method).baseline:
    return baselines.main, _baseline_settings(grid, run)
  return finetune.main, _finetune_settings(grid, run)


def source_of(grid: Grid, run: Run) -> Pretraining | Vectors | None:
  """The run whose encoder, or whose vectors, this one starts from."""
  method = grid.method(run.method)
  if isinstance(run, Pretraining):
    return Pretraining(method.after, run.seed) if method.after else None
  if isinstance(run, Cell) and run.is_frozen:
    return vectors_of(grid, run)
  if not method.flags:
    return None
  if isinstance(run, Vectors):
    return Pretraining(run.method, run.seed)
  place = grid.seeds.index(run.seed) % len(grid.pretrain_seeds)
  return Pretraining(run.method, grid.pretrain_seeds[place])


def needs_of(grid: Grid, run: Run) -> set[Run]:
  """The runs without which this one cannot be made."""
  needed = {source_of(grid, run)} - {None}
  method = grid.method(run.method)
  if isinstance(run, Pretraining) and method.steps_of:
    needed.add(Pretraining(method.steps_of, run.seed))
  return needed


def _source_path(grid: Grid, run: Run) -> str:
  source = source_of(grid, run)
  return str(grid.folder / source.name) if source else ''


def _pretrain_settings(
  grid: Grid, run: Pretraining
) -> pretrain.PretrainSettings:
  method = grid.method(run.method)
  settings = grid.pretraining[method.flags]
  fields = {'init_from': _source_path(grid, run)}
  if not fields['init_from']:
    # The same encoder as all other rows have, unless its file says another.
    fields |= grid.shape() | settings.encoder_fields()
  if method.steps_of:
    other = Pretraining(method.steps_of, run.seed)
    fields |= {'num_steps': steps_taken(grid, other), 'patience': 0}
  if method.rate_of:
    fields['learning_rate'] = grid.pretraining[method.rate_of].learning_rate
  fields |= method.changes
  return dataclasses.replace(
    settings,
    workdir=str(grid.folder / run.name),
    seed=run.seed,
    **fields | grid.data,
  )


def _cell_fields(grid: Grid, cell: Cell) -> dict[str, Any]:
  """The flags that the commands of all cells have."""
  rows = grid.tasks[cell.task].splits['train'].num_rows
  few = max(1, round(cell.share * rows))
  return {
    'workdir': str(grid.folder / cell.name),
    'task': cell.task,
    'split_seed': cell.split,
    # 0 stands for all.
    'train_users': 0 if cell.share == 1 else few,
  } | grid.data


def _baseline_settings(grid: Grid, cell: Cell) -> baselines.BaselineSettings:
  method = grid.method(cell.method)
  fields = _cell_fields(grid, cell)
  # As much of a user as the encoders see.
  default = UserEncoder.max_length
  fields['max_length'] = grid.shape().get('max_length', default)
  if method.baseline == 'bag_svd':
    # As wide as the vectors.
    width = grid.shape().get('embed_dim', UserEncoder.embed_dim)
    fields['num_components'] = width
  return baselines.BaselineSettings(
    method=method.baseline, **fields | method.changes
  )


def _finetune_settings(grid: Grid, cell: Cell) -> finetune.FinetuneSettings:
  settings = grid.finetuning[grid.tasks[cell.task].kind]
  fields = _cell_fields(grid, cell)
  # As many updates as on all labels, and as many of them without progress.
  longer = min(1 / cell.share, LONGEST)
  fields |= {
    name: math.ceil(getattr(settings, name) * longer)
    for name in ('num_epochs', 'patience')
  }
  # The files may name runs of their own.
  fields['pretrained'] = _source_path(grid, cell)
  if not fields['pretrained']:
    fields |= grid.shape() | settings.encoder_fields()
  return dataclasses.replace(settings, seed=cell.seed, **fields)


def _encoding(
  grid: Grid, run: Vectors
) -> tuple[Callable[[Any], Any], frozen.VectorSettings]:
  # Any of the tasks with these users: they have the same.
  task = next(
    task for task, found in grid.histories.items() if found.name == run.users
  )
  source = _source_path(grid, run)
  settings = frozen.VectorSettings(
    workdir=str(grid.folder / run.name),
    pretrained=source,
    seed=run.seed,
    **grid.data | ({} if source else grid.shape()),
  )
  main = functools.partial(
    frozen.encode, data=grid.tasks[task], histories=grid.histories[task]
  )
  return main, settings


def _reading(
  grid: Grid, cell: Cell
) -> tuple[Callable[[Any], Any], frozen.ReadingSettings]:
  settings = frozen.ReadingSettings(
    vectors=_source_path(grid, cell),
    with_bag=cell.mode == FROZEN_WITH_BAG,
    **_cell_fields(grid, cell),
  )
  main = functools.partial(
    frozen.read_vectors,
    data=grid.tasks[cell.task],
    histories=grid.histories[cell.task],
  )
  return main, settings
