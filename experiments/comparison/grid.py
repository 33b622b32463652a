"""What a comparison consists of: its runs, and what pre-training logged.

Each run comes after those that it needs.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from adaptssr_jax.data import UserData
from adaptssr_jax.encoder.model import UserEncoder
from experiments.comparison.methods import (
  FINE_TUNED,
  FROZEN_WITH_BAG,
  METHODS,
  Method,
)
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings
from experiments.flags.pretraining import PretrainSettings
from experiments.pretraining.collapse import collapse_warning
from experiments.run.encoder import OVERRIDABLE_FIELDS
from experiments.run.logs import read_metrics


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """The pre-training run of a method."""

  method: str
  seed: int

  @property
  def name(self) -> str:
    """Its folder in that of the comparison."""
    return f'pretrain/{self.method}/seed_{self.seed}'

  @property
  def timing_group(self) -> str:
    """What runs that take about as long have in common."""
    return f'pretrain/{self.method}'


@dataclasses.dataclass(frozen=True)
class Vectors:
  """The vectors that an encoder, trained or random, gives users of a task."""

  method: str
  seed: int
  task: str

  @property
  def name(self) -> str:
    """Its folder in that of the comparison."""
    return f'vectors/{self.method}/seed_{self.seed}/{self.task}'

  @property
  def timing_group(self) -> str:
    """What runs that take about as long have in common."""
    return f'vectors/{self.task}'


@dataclasses.dataclass(frozen=True)
class Cell:
  """A method on a task: a model or vectors, or a baseline if without a seed.

  The seed is that of fine-tuning, or of the pre-training behind the vectors. A
  baseline has no mode either: it is the same in all columns.
  """

  method: str
  task: str
  share: float
  split: int
  seed: int | None
  mode: str = FINE_TUNED

  @property
  def is_frozen(self) -> bool:
    """Whether it reads vectors, and trains no encoder."""
    return self.mode not in ('', FINE_TUNED)

  @property
  def name(self) -> str:
    """Its folder in that of the comparison."""
    place = f'cells/{self.method}/{self.task}'
    if self.is_frozen:
      place += f'/{self.mode}'
    seed = '' if self.seed is None else f'/seed_{self.seed}'
    return f'{place}/share_{self.share:g}/split_{self.split}{seed}'

  @property
  def timing_group(self) -> str:
    """What runs that take about as long have in common."""
    model = self.method if self.seed is None else self.mode
    return f'cell/{model}/{self.task}/{self.share:g}'


Run = Pretraining | Vectors | Cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """What is compared."""

  folder: pathlib.Path  # of the comparison
  data: Mapping[str, Any]  # the flags of the data set
  methods: Mapping[str, Method]  # the rows, by name
  reference: str  # the row that the others are compared with
  tasks: Mapping[str, UserData]  # the columns, with the stored splits
  modes: tuple[str, ...]  # how vectors are used
  shares: tuple[float, ...]  # of the training rows
  splits: tuple[int, ...]  # seeds of the splits
  probe_splits: tuple[int, ...]  # the same where vectors are read
  seeds: tuple[int, ...]  # of fine-tuning
  # Every seed in every split; else the first seed in the first split, the
  # second in the second, and so on, round the shorter of the two.
  crossed: bool
  pretrain_seeds: tuple[int, ...]  # fine-tuning goes round them
  pretraining: Mapping[str, PretrainSettings]  # by the flag of its file
  pretrain_data: str  # name of the data of pre-training, if there is any
  finetuning: Mapping[str, FinetuneSettings]  # by kind of task

  def method(self, name: str) -> Method:
    """The method of this name, a row of the table or what a row starts from."""
    return (METHODS | self.methods)[name]

  def modes_of(self, task: str) -> tuple[str, ...]:
    """How the vectors are used for a task; no bag is joined in a ranking."""
    if self.tasks[task].kind != 'ranking':
      return self.modes
    return tuple(mode for mode in self.modes if mode != FROZEN_WITH_BAG)

  def splits_of(self, mode: str) -> tuple[int, ...]:
    """The seeds of the splits of a column."""
    return self.splits if mode == FINE_TUNED else self.probe_splits

  def runs(self) -> list[tuple[int, int]]:
    """The (split, seed) of all fine-tuned models of a number of the table."""
    if self.crossed:
      return list(itertools.product(self.splits, self.seeds))
    pairs = zip(itertools.cycle(self.splits), itertools.cycle(self.seeds))
    longer = max(len(self.splits), len(self.seeds))
    return list(itertools.islice(pairs, longer))

  def trained_methods(self) -> list[str]:
    """The methods that are pre-trained, rows and what rows start from."""
    stages = (run for run in plan(self) if isinstance(run, Pretraining))
    return list(dict.fromkeys(run.method for run in stages))

  def shape(self) -> dict[str, Any]:
    """The encoder that all methods have, as far as pre-training says it."""
    fields = {}
    for settings in self.pretraining.values():
      fields |= settings.encoder_fields()
    fields.pop('dropout_rate', None)
    return fields

  def shape_of(self, name: str) -> dict[str, Any]:
    """The encoder of a method: what its file says, or what it starts from."""
    method = self.method(name)
    if method.after:
      return self.shape_of(method.after)
    return self.shape() | self.settings_of(name).encoder_fields()

  def settings_of(self, name: str) -> PretrainSettings:
    """The flags of a method's file, with what the method changes in them."""
    method = self.method(name)
    return dataclasses.replace(self.pretraining[method.flags], **method.changes)


def check_columns(grid: Grid) -> None:
  """Refuses a task that has no number, or none in one of the modes."""
  for task in grid.tasks:
    if not grid.modes_of(task):
      raise SettingsError(
        f'--modes={",".join(grid.modes)} has no column for the ranking {task}: '
        'add frozen or fine_tuned, or leave it out of --tasks'
      )
    for mode in grid.modes_of(task):
      rows = (cells_of(grid, name, task, 1.0, mode) for name in grid.methods)
      if not any(rows):
        raise SettingsError(
          f'no row ({", ".join(grid.methods)}) has a number for {task} in '
          f'--modes={mode}: leave out either, or add one to --methods'
        )


def check_shapes(grid: Grid) -> None:
  """Refuses what would be refused after hours of pre-training.

  That is a run whose file says another encoder than the one it starts from.
  """
  for trained in grid.trained_methods():
    method = grid.method(trained)
    given = grid.settings_of(trained).encoder_fields()
    has = grid.shape_of(trained)
    for name in given.keys() - set(OVERRIDABLE_FIELDS):
      known = has.get(name, getattr(UserEncoder, name))
      if known != given[name]:
        raise SettingsError(
          f'--{method.flags}: --{name}={given[name]} contradicts the encoder '
          f'that --methods={trained} starts from, {method.after}, which has '
          f'{known}: leave it out of the file, or leave out the method'
        )


def plan(grid: Grid) -> list[Run]:
  """All runs, each after those that it needs, method by method."""
  runs: list[Run] = []
  for name in grid.methods:
    for seed in grid.pretrain_seeds:
      runs += _pretrainings(grid, name, seed)
    for task in grid.tasks:
      for mode in grid.modes_of(task):
        for share in grid.shares:
          cells = cells_of(grid, name, task, share, mode)
          runs += [vectors_of(cell) for cell in cells if cell.is_frozen] + cells
  return list(dict.fromkeys(runs))


def cells_of(
  grid: Grid, name: str, task: str, share: float, mode: str
) -> list[Cell]:
  """The cells behind one number of the table; none where it is a dash."""
  method = grid.methods[name]
  if grid.tasks[task].kind not in method.kinds or mode not in method.modes:
    return []
  runs = grid.runs()
  if method.baseline:
    # It has nothing random, and no encoder.
    runs, mode = [(split, None) for split in grid.splits_of(mode)], ''
  elif mode != FINE_TUNED:
    runs = itertools.product(grid.probe_splits, grid.pretrain_seeds)
  return [Cell(name, task, share, split, seed, mode) for split, seed in runs]


def vectors_of(cell: Cell) -> Vectors:
  """The vectors that a cell reads."""
  return Vectors(cell.method, cell.seed, cell.task)


def _pretrainings(grid: Grid, name: str, seed: int) -> Iterator[Pretraining]:
  method = grid.method(name)
  for needed in (method.after, method.steps_of, *method.concatenated):
    if needed:
      yield from _pretrainings(grid, needed, seed)
  if method.flags:
    yield Pretraining(name, seed)


def steps_taken(grid: Grid, run: Pretraining) -> int:
  """The updates that a finished pre-training run made."""
  return read_metrics(grid.folder / run.name)[-1]['step']


def best_validation(grid: Grid, run: Pretraining) -> dict[str, float]:
  """The line of metrics of the state that the rest starts from.

  Of the states that have not collapsed the one with the least validation loss;
  the last state if all of them have.
  """
  logged = read_metrics(grid.folder / run.name)
  lines = [line for line in logged if 'validation_loss' in line]
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
  objective = grid.settings_of(method).objective
  return collapse_warning(values, objective=objective)
