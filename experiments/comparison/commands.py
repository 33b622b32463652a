"""The commands that carry out the runs of a comparison, and their records.

Every run has a folder. When the run is finished, `FOLDER.json` next to it
records its flags, duration, device and commit.
"""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.data import DataError
from adaptssr_jax.encoder.model import UserEncoder
from experiments import baselines, finetune, pretrain
from experiments.comparison import frozen
from experiments.comparison.grid import (
  Cell,
  Grid,
  Pretraining,
  Run,
  Vectors,
  steps_taken,
  vectors_of,
)
from experiments.comparison.methods import FROZEN_WITH_BAG
from experiments.flags.binder import Settings, SettingsError
from experiments.flags.flag_files import differing_flags
from experiments.run.process import inner_run
from experiments.run.workdir import atomic_write, commit

# On a share of the labels an epoch has fewer updates, so the number of epochs
# is multiplied, by at most this factor.
_MAX_FACTOR = 10


def command_of(grid: Grid, run: Run) -> tuple[Callable[[Any], Any], Settings]:
  """The `main` of the command that carries out a run, and its settings."""
  if isinstance(run, Pretraining):
    return pretrain.main, _pretrain_settings(grid, run)
  if isinstance(run, Vectors):
    main = functools.partial(frozen.encode, data=grid.tasks[run.task])
    return main, _vector_settings(grid, run)
  if run.is_frozen:
    main = functools.partial(frozen.probe_vectors, data=grid.tasks[run.task])
    return main, _probe_settings(grid, run)
  if grid.method(run.method).baseline:
    return baselines.main, _baseline_settings(grid, run)
  return finetune.main, _finetune_settings(grid, run)


def sources_of(grid: Grid, run: Run) -> list[Pretraining | Vectors]:
  """The runs whose encoder or vectors this run uses.

  Only concatenated vectors have more than one source.
  """
  method = grid.method(run.method)
  if isinstance(run, Pretraining):
    return [Pretraining(method.after, run.seed)] if method.after else []
  if isinstance(run, Cell) and run.is_frozen:
    return [vectors_of(run)]
  names = method.concatenated or ([run.method] if method.flags else [])
  if not names:
    return []
  # Fine-tuning cycles through the seeds of pre-training, and a method that is
  # named again stands for its next seed.
  first, seeds = grid.seeds.index(run.seed), grid.pretrain_seeds
  turns = [first + names[:at].count(name) for at, name in enumerate(names)]
  return [
    Pretraining(name, seeds[turn % len(seeds)])
    for name, turn in zip(names, turns, strict=True)
  ]


def needs_of(grid: Grid, run: Run) -> set[Run]:
  """The runs that have to be finished before this one starts."""
  needed = set(sources_of(grid, run))
  method = grid.method(run.method)
  if isinstance(run, Pretraining) and method.steps_of:
    needed.add(Pretraining(method.steps_of, run.seed))
  return needed


def _source_paths(grid: Grid, run: Run) -> list[str]:
  """The folders of the sources; one '' without any."""
  sources = sources_of(grid, run)
  return [str(grid.folder / source.name) for source in sources] or ['']


def _pretrain_settings(
  grid: Grid, run: Pretraining
) -> pretrain.PretrainSettings:
  method = grid.method(run.method)
  settings = grid.pretraining[method.flags]
  (start,) = _source_paths(grid, run)
  fields = {'init_from': start}
  if not start:
    # All rows have the same encoder, unless the file of one sets another.
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
    **fields | grid.settings.data_flags(),
  )


def _cell_fields(grid: Grid, cell: Cell) -> dict[str, Any]:
  """The flags that all commands of cells share."""
  rows = grid.tasks[cell.task].splits['train'].num_rows
  few = max(1, round(cell.share * rows))
  return {
    'workdir': str(grid.folder / cell.name),
    'task': cell.task,
    'split_seed': cell.split,
    # 0 means all rows.
    'train_users': 0 if cell.share == 1 else few,
  } | grid.settings.data_flags()


def _baseline_settings(grid: Grid, cell: Cell) -> baselines.BaselineSettings:
  method = grid.method(cell.method)
  fields = _cell_fields(grid, cell)
  if method.baseline in baselines.BAGS:
    # The baseline sees as many behaviours of a user as the encoders.
    default = UserEncoder.max_length
    fields['max_length'] = grid.shape().get('max_length', default)
  if method.baseline == 'bag_svd':
    # The SVD has as many features as the vectors.
    width = grid.shape().get('embed_dim', UserEncoder.embed_dim)
    fields['num_components'] = width
  return baselines.BaselineSettings(
    method=method.baseline, **fields | method.changes
  )


def _finetune_settings(grid: Grid, cell: Cell) -> finetune.FinetuneSettings:
  settings = grid.finetuning[grid.tasks[cell.task].kind]
  fields = _cell_fields(grid, cell)
  # The run has as many updates as one on all labels, and stops after as many
  # updates without progress.
  factor = min(1 / cell.share, _MAX_FACTOR)
  fields |= {
    name: math.ceil(getattr(settings, name) * factor)
    for name in ('num_epochs', 'patience')
  }
  # This overrides a --pretrained in the flag file.
  (start,) = _source_paths(grid, cell)
  fields['pretrained'] = start
  if not start:
    fields |= grid.shape() | settings.encoder_fields()
  return dataclasses.replace(settings, seed=cell.seed, **fields)


def _vector_settings(grid: Grid, run: Vectors) -> frozen.VectorSettings:
  source, *more = _source_paths(grid, run)
  return frozen.VectorSettings(
    workdir=str(grid.folder / run.name),
    pretrained=source,
    concatenate=tuple(more),
    history=grid.method(run.method).history,
    seed=run.seed,
    **grid.settings.data_flags() | ({} if source else grid.shape()),
  )


def _probe_settings(grid: Grid, cell: Cell) -> frozen.ProbeSettings:
  (vectors,) = _source_paths(grid, cell)
  return frozen.ProbeSettings(
    vectors=vectors,
    with_bag=cell.mode == FROZEN_WITH_BAG,
    **_cell_fields(grid, cell),
  )


# A resumed run may change these flags; a compared run may not.
_LENGTH_OF_A_RUN = {'num_epochs', 'num_steps', 'patience'}
# These name folders of other runs, whose flags are recorded instead.
_SOURCES = {'init_from', 'pretrained', 'concatenate', 'vectors'}


def make(grid: Grid, run: Run) -> tuple[dict[str, Any], bool]:
  """Carries out a run, unless it is finished.

  Returns:
    The record of the run, and whether it was carried out now.
  """
  record = record_of(grid, run)
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
    # For a resumed run, the time since it was resumed.
    'seconds': round(time.monotonic() - start, 1),
    'resumed': resumed,
    'device': jax.devices()[0].device_kind,
    'commit': commit(),
  }
  atomic_write(_record_path(grid, run), json.dumps(record, indent=2) + '\n')
  return record, True


def record_of(grid: Grid, run: Run) -> dict[str, Any] | None:
  """The record of a finished run; None if it is not finished.

  Raises:
    SettingsError: the run was carried out with other flags.
  """
  if not is_finished(grid, run):
    return None
  record = json.loads(_record_path(grid, run).read_text())
  _, settings = command_of(grid, run)
  flags = _flags_of(grid, run, settings)
  differing = differing_flags(
    record['flags'], flags, defaults=settings.default_values()
  )
  if differing:
    raise SettingsError(
      f'{run.name} is finished with other flags: {differing}. Choose '
      f'another --workdir, or delete {run.name} and {run.name}.json there'
    )
  return record


def is_finished(grid: Grid, run: Run) -> bool:
  """Whether a run is finished, with these flags or with others."""
  return _record_path(grid, run).exists() and (grid.folder / run.name).is_dir()


def _record_path(grid: Grid, run: Run) -> pathlib.Path:
  return grid.folder / f'{run.name}.json'


def _flags_of(grid: Grid, run: Run, settings: Settings) -> dict[str, str]:
  """The flags that determine the result of a run, and the name of its data."""
  free = settings.mutable_names() - _LENGTH_OF_A_RUN
  flags = settings.flag_values(without=free | _SOURCES)
  flags['dataset'] = (
    grid.pretrain_data
    if isinstance(run, Pretraining)
    else grid.tasks[run.task].name
  )
  for source in sources_of(grid, run):
    record = json.loads(_record_path(grid, source).read_text())
    flags |= {
      name if ':' in name else f'{source.name}:{name}': value
      for name, value in record['flags'].items()
    }
  return flags
