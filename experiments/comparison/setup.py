"""Reads the flags of a comparison, and refuses what would fail later."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptssr_jax.data import UserData, resplit
from experiments.comparison import methods
from experiments.comparison.grid import Grid, check_columns, check_shape
from experiments.comparison.methods import FINE_TUNED
from experiments.comparison.options import CompareSettings
from experiments.comparison.rows import choose_rows
from experiments.finetuning.data import check_task, open_task
from experiments.flags.binder import Settings, SettingsError, from_flagfile
from experiments.flags.finetuning import FinetuneSettings, with_defaults
from experiments.flags.pretraining import PretrainSettings, check_objective
from experiments.run import loop
from experiments.run.data import open_data

# Each stage of pre-training has a flag of `CompareSettings`, and rows of
# `methods.METHODS`. The `--objective` of its file must have these alone, first,
# or anywhere. Where the flags of a method leave the shape of its encoder open,
# the file of the last stage that gives it decides.
STAGES = {
  'warm_start': (('masked_items',), 'alone'),
  'pretrain': (('adaptssr',), 'alone'),
  'first_stage': (('pooled_items',), 'first'),
  'last_stage': (('adaptssr',), 'anywhere'),
  'joint': (('pooled_items', 'adaptssr'), 'anywhere'),
}


def read_grid(settings: CompareSettings) -> Grid:
  """The comparison that the flags define.

  Raises:
    SettingsError: a flag, or a flag of a file, is refused before any run.
  """
  seeds = numbers_of('seeds', settings.seeds, int, high=2**32 - 1)
  splits = numbers_of('splits', settings.splits, int)
  shares = numbers_of(
    'train_shares', settings.train_shares, float, above=0.0, high=1.0
  )
  if settings.pretrain_seeds > len(seeds):
    raise SettingsError('--pretrain_seeds is more than the number of --seeds')
  rhos = numbers_of('rhos', settings.rhos, float, high=0.99, above=0.0)
  chosen = choose_rows(settings, rhos)
  if not settings.tasks:
    raise SettingsError('--tasks needs at least one task')
  if settings.modes != (FINE_TUNED,):
    _check_probe_splits(settings)
  _check_crossing(settings, splits, seeds)
  pretraining = read_pretraining(settings, methods.METHODS | chosen, chosen)
  tasks = {task: open_data(settings, task) for task in settings.tasks}
  grid = Grid(
    settings=settings,
    methods=chosen,
    tasks=tasks,
    shares=shares,
    splits=splits,
    seeds=seeds,
    pretraining=pretraining,
    pretrain_data=open_data(settings, 'pretrain').name if pretraining else '',
    finetuning=_read_finetuning(settings, tasks, splits),
  )
  check_columns(grid)
  for name in grid.trained_methods():
    stage = grid.method(name).flags
    with naming(f'--{stage}={getattr(settings, stage)}, {name}'):
      # What pre-training would refuse after hours of other runs.
      loop.check_run(grid.settings_of(name))
      check_objective(grid.settings_of(name))
    check_shape(grid, name)
  return grid


def _check_probe_splits(settings: CompareSettings) -> None:
  """Refuses random splits of a task that keeps the rows of a user together."""
  for task in settings.tasks:
    if task.endswith('_by_user') and settings.probe_splits > 1:
      raise SettingsError(
        f'--tasks={task} keeps the rows of a user in one split, which random '
        'splits would not: take --probe_splits=1'
      )


def _check_crossing(
  settings: CompareSettings, splits: Sequence[int], seeds: Sequence[int]
) -> None:
  """Refuses runs that use some splits or seeds more often than others."""
  few, many = sorted((len(splits), len(seeds)))
  if not settings.crossed and many % few:
    raise SettingsError(
      f'--crossed=false with {len(seeds)} --seeds and {len(splits)} --splits '
      'uses some more often than others: give the same number of both, or a '
      'multiple'
    )


def _read_finetuning(
  settings: CompareSettings,
  tasks: Mapping[str, UserData],
  splits: Sequence[int],
) -> dict[str, FinetuneSettings]:
  """The settings of fine-tuning, by the kind of task.

  Tasks and splits that cannot be measured are refused, before hours of
  training.
  """
  finetuning, probe_splits = {}, ()
  if settings.modes != (FINE_TUNED,):
    probe_splits = range(settings.probe_splits)
  for task, users in tasks.items():
    # `open_task` refuses a pre-training "task", which has no flag file.
    kind = users.kind if users.kind in methods.METRICS else 'classification'
    finetuning[kind] = read_flagfile(FinetuneSettings, settings, kind)
    # The methods decide what fine-tuning starts from.
    tuned = dataclasses.replace(
      finetuning[kind], task=task, pretrained='', **settings.data_flags()
    )
    _check_tuning(settings, tuned, kind)
    for split in splits:
      open_task(dataclasses.replace(tuned, split_seed=split), users)
    # Methods are compared by the default of --select_by.
    tuned = dataclasses.replace(tuned, select_by=None)
    for split in sorted({*splits, *probe_splits}):
      check_task(tuned, resplit(users, split))
  return finetuning


def _check_tuning(
  settings: CompareSettings, tuned: FinetuneSettings, kind: str
) -> None:
  """Refuses what fine-tuning would refuse after hours of pre-training."""
  path = f'--{kind}={getattr(settings, kind)}'
  if tuned.kind not in (None, kind):
    raise SettingsError(
      f'{path}: leave out --kind={tuned.kind}; the data set decides the kind '
      f'of a task, which is {kind} for {tuned.task}'
    )
  if tuned.mode != 'full':
    raise SettingsError(
      f'{path}: leave out --mode={tuned.mode}; frozen encoders have columns of '
      'their own (--modes=frozen)'
    )
  with naming(path):
    loop.check_run(with_defaults(tuned))


def read_pretraining(
  settings: CompareSettings,
  known: Mapping[str, methods.Method],
  chosen: Sequence[str],
) -> dict[str, PretrainSettings]:
  """The settings of pre-training, by the flag that names their file."""
  needed = {
    stage
    for name in chosen
    for one in methods.with_needed(name, known)
    for stage in (known[one].flags, known[one].rate_of)
  }
  found = {}
  for name in STAGES:
    path = getattr(settings, name)
    if not path and name not in needed:
      continue
    if not path:
      raise SettingsError(
        f'--methods needs --{name}=FLAGFILE: the flags of their pre-training'
      )
    found[name] = read_flagfile(PretrainSettings, settings, name)
    if found[name].select_by == 'probe':
      raise SettingsError(
        f'--{name}={path}: leave out --select_by=probe, which uses labels that '
        'are test labels in other splits'
      )
    if found[name].split != 'last_ten':
      raise SettingsError(
        f'--{name}={path}: leave out --split={found[name].split}: all methods '
        'are pre-trained on the same behaviours'
      )
    check_objectives(name, path, found[name].objective)
  return found


def check_objectives(name: str, path: str, objectives: tuple[str, ...]) -> None:
  """Refuses the flag file of a stage if its objectives are those of another."""
  wanted, where = STAGES[name]
  words = ','.join(wanted)
  is_allowed, rule = {
    'alone': (objectives == wanted, words),
    'first': (
      objectives[: len(wanted)] == wanted,
      f'{words}, or that and more',
    ),
    'anywhere': (set(wanted) <= set(objectives), f'{words} among it'),
  }[where]
  if not is_allowed:
    raise SettingsError(
      f'--{name}={path} must have --objective={rule}, not '
      f'{",".join(objectives)}'
    )


def read_flagfile(
  settings_type: type[Settings], settings: CompareSettings, name: str
) -> Any:
  """The settings in the file that a flag names; the defaults without one."""
  path = getattr(settings, name)
  if not path:
    return settings_type()
  with naming(f'--{name}={path}'):
    return from_flagfile(settings_type, path)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Prepends the name of a flag file to errors about it."""
  try:
    yield
  except SettingsError as error:
    raise SettingsError(f'{path}: {error}') from error


def numbers_of(
  name: str,
  words: Sequence[str],
  kind: type,
  *,
  above: float = -1.0,
  high: float | None = None,
) -> tuple[Any, ...]:
  """The numbers in a list flag, without duplicates."""
  numbers = []
  for word in words:
    try:
      number = kind(word)
    except ValueError:
      number = None
    if number is None or not above < number or (high and number > high):
      what = 'whole numbers' if kind is int else 'numbers'
      bounds = 'from 0' if above < 0 else f'above {above:g}'
      raise SettingsError(
        f'--{name} must be {what} {bounds}'
        f'{f" to {high:g}" if high else ""}, not {word!r}'
      )
    numbers.append(number)
  if not numbers and name != 'rhos':
    raise SettingsError(f'--{name} needs at least one number')
  return tuple(dict.fromkeys(numbers))
