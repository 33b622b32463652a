"""The runs of a comparison, in an order in which each follows those it needs.

Also reads what the pre-training runs logged.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from adaptssr_jax.data import UserData
from adaptssr_jax.encoder.model import UserEncoder
from experiments.comparison.methods import (
  FINE_TUNED,
  FROZEN_WITH_BAG,
  METHODS,
  Method,
  with_needed,
)
from experiments.comparison.options import CompareSettings
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings
from experiments.flags.pretraining import PretrainSettings
from experiments.pretraining.validation import collapse_warning
from experiments.run.encoder import OVERRIDABLE_FIELDS
from experiments.run.logs import read_metrics


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """The pre-training run of a method."""

  method: str
  seed: int

  @property
  def name(self) -> str:
    """The folder of the run, relative to that of the comparison."""
    return f'pretrain/{self.method}/seed_{self.seed}'

  @property
  def timing_group(self) -> str:
    """A key that is the same for runs that take about the same time."""
    return f'pretrain/{self.method}'


@dataclasses.dataclass(frozen=True)
class Vectors:
  """The vectors of the users of a task, from a trained or random encoder."""

  method: str
  seed: int
  task: str

  @property
  def name(self) -> str:
    """The folder of the run, relative to that of the comparison."""
    return f'vectors/{self.method}/seed_{self.seed}/{self.task}'

  @property
  def timing_group(self) -> str:
    """A key that is the same for runs that take about the same time."""
    return f'vectors/{self.task}'


@dataclasses.dataclass(frozen=True)
class Cell:
  """The result of a method on a task.

  The method is a fine-tuned model, a probe of vectors, or a baseline. The seed
  is that of fine-tuning, or of the pre-training that gave the vectors. A
  baseline has neither seed nor mode: its result is the same in all columns.
  """

  method: str
  task: str
  share: float
  split: int
  seed: int | None
  mode: str = FINE_TUNED

  @property
  def is_frozen(self) -> bool:
    """Whether it is a probe of vectors, which trains no encoder."""
    return self.mode not in ('', FINE_TUNED)

  @property
  def name(self) -> str:
    """The folder of the run, relative to that of the comparison."""
    folder = f'cells/{self.method}/{self.task}'
    if self.is_frozen:
      folder += f'/{self.mode}'
    seed = '' if self.seed is None else f'/seed_{self.seed}'
    return f'{folder}/share_{self.share:g}/split_{self.split}{seed}'

  @property
  def timing_group(self) -> str:
    """A key that is the same for runs that take about the same time."""
    model = self.method if self.seed is None else self.mode
    return f'cell/{model}/{self.task}/{self.share:g}'


Run = Pretraining | Vectors | Cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """All that a comparison needs to know: its flags, and what they name."""

  settings: CompareSettings
  methods: Mapping[str, Method]  # the rows, by name
  tasks: Mapping[str, UserData]  # the columns, with the stored splits
  shares: tuple[float, ...]  # of the training rows
  splits: tuple[int, ...]  # seeds of the splits of fine-tuned columns
  seeds: tuple[int, ...]  # of fine-tuning
  pretraining: Mapping[str, PretrainSettings]  # by the flag of its file
  pretrain_data: str  # the name of the data of pre-training; '' without any
  finetuning: Mapping[str, FinetuneSettings]  # by kind of task

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the comparison."""
    return pathlib.Path(self.settings.workdir)

  @property
  def pretrain_seeds(self) -> tuple[int, ...]:
    """The seeds of pre-training; fine-tuning cycles through them."""
    return self.seeds[: self.settings.pretrain_seeds or len(self.seeds)]

  def method(self, name: str) -> Method:
    """The method of this name, which need not be a row of the table."""
    return (METHODS | self.methods)[name]

  def modes_of(self, task: str) -> tuple[str, ...]:
    """The modes of a task: rankings have no column with a bag."""
    modes = self.settings.modes
    if self.tasks[task].kind != 'ranking':
      return modes
    return tuple(mode for mode in modes if mode != FROZEN_WITH_BAG)

  def splits_of(self, mode: str) -> tuple[int, ...]:
    """The seeds of the splits in the columns of a mode."""
    if mode == FINE_TUNED:
      return self.splits
    return tuple(range(self.settings.probe_splits))

  def runs(self) -> list[tuple[int, int]]:
    """The (split, seed) of each run behind one fine-tuned value."""
    if self.settings.crossed:
      return list(itertools.product(self.splits, self.seeds))
    pairs = zip(itertools.cycle(self.splits), itertools.cycle(self.seeds))
    longer = max(len(self.splits), len(self.seeds))
    return list(itertools.islice(pairs, longer))

  def trained_methods(self) -> list[str]:
    """The pre-trained methods: rows, and methods that rows start from."""
    stages = (run for run in plan(self) if isinstance(run, Pretraining))
    return list(dict.fromkeys(run.method for run in stages))

  def shape(self) -> dict[str, Any]:
    """The encoder fields that the flag files of pre-training set."""
    fields = {}
    for settings in self.pretraining.values():
      fields |= settings.encoder_fields()
    fields.pop('dropout_rate', None)
    return fields

  def shape_of(self, name: str) -> dict[str, Any]:
    """The encoder fields of a method, or of the method that it starts from."""
    method = self.method(name)
    if method.after:
      return self.shape_of(method.after)
    return self.shape() | self.settings_of(name).encoder_fields()

  def settings_of(self, name: str) -> PretrainSettings:
    """The settings of a method's flag file, with the changes of the method."""
    method = self.method(name)
    return dataclasses.replace(self.pretraining[method.flags], **method.changes)


def check_columns(grid: Grid) -> None:
  """Refuses a task for which no row has a value in some column."""
  for task in grid.tasks:
    if not grid.modes_of(task):
      raise SettingsError(
        f'--modes={",".join(grid.settings.modes)} has no column for the '
        f'ranking {task}: add frozen or fine_tuned, or leave {task} out of '
        '--tasks'
      )
    for mode in grid.modes_of(task):
      rows = (cells_of(grid, name, task, 1.0, mode) for name in grid.methods)
      if not any(rows):
        raise SettingsError(
          f'no row ({", ".join(grid.methods)}) has a value for {task} in '
          f'--modes={mode}: leave out either, or add a row to --methods'
        )


def check_shape(grid: Grid, trained: str) -> None:
  """Refuses a method whose file sets another encoder than that it starts from.

  Pre-training would refuse it too, but after hours of other runs.
  """
  method = grid.method(trained)
  given = grid.settings_of(trained).encoder_fields()
  has = grid.shape_of(trained)
  for name in given.keys() - set(OVERRIDABLE_FIELDS):
    known = has.get(name, getattr(UserEncoder, name))
    if known != given[name]:
      raise SettingsError(
        f'--{method.flags}: --{name}={given[name]} contradicts the encoder '
        f'that --methods={trained} starts from, {method.after}, which has '
        f'{known}: leave --{name} out of the file, or leave out the method'
      )


def plan(grid: Grid) -> list[Run]:
  """All runs, method by method, each after those that it needs."""
  runs: list[Run] = []
  for name in grid.methods:
    needed = list(with_needed(name, METHODS | grid.methods))
    trained = [one for one in needed if grid.method(one).flags]
    for seed in grid.pretrain_seeds:
      runs += [Pretraining(one, seed) for one in trained]
    for task in grid.tasks:
      for mode in grid.modes_of(task):
        for share in grid.shares:
          cells = cells_of(grid, name, task, share, mode)
          runs += [vectors_of(cell) for cell in cells if cell.is_frozen] + cells
  return list(dict.fromkeys(runs))


def cells_of(
  grid: Grid, name: str, task: str, share: float, mode: str
) -> list[Cell]:
  """The cells behind one value of the table; none where it is a dash."""
  method = grid.methods[name]
  if grid.tasks[task].kind not in method.kinds or mode not in method.modes:
    return []
  runs = grid.runs()
  if method.baseline:
    # A baseline has no encoder and draws nothing at random.
    runs, mode = [(split, None) for split in grid.splits_of(mode)], ''
  elif mode != FINE_TUNED:
    runs = itertools.product(grid.splits_of(mode), grid.pretrain_seeds)
  return [Cell(name, task, share, split, seed, mode) for split, seed in runs]


def vectors_of(cell: Cell) -> Vectors:
  """The vectors that a frozen cell is fitted on."""
  return Vectors(cell.method, cell.seed, cell.task)


def steps_taken(grid: Grid, run: Pretraining) -> int:
  """The number of updates of a finished pre-training run."""
  return read_metrics(grid.folder / run.name)[-1]['step']


def best_validation(grid: Grid, run: Pretraining) -> dict[str, float]:
  """The logged metrics of the state from which later runs start.

  This is the state with the least validation loss among those that have not
  collapsed, or the last state if all of them have.
  """
  logged = read_metrics(grid.folder / run.name)
  lines = [line for line in logged if 'validation_loss' in line]
  usable = [line for line in lines if not collapse_of(grid, run.method, line)]
  return min(
    usable or lines[-1:], key=lambda line: line['validation_loss'], default={}
  )


def collapse_of(grid: Grid, method: str, line: Mapping[str, float]) -> str:
  """A warning if a line of `metrics.jsonl` shows a collapse; else ''."""
  values = {
    name.removeprefix('validation_'): value for name, value in line.items()
  }
  if 'mean_cosine' not in values:
    return ''
  objective = grid.settings_of(method).objective
  return collapse_warning(values, objective=objective)
