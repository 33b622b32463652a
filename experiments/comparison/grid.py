"""What a comparison consists of: its runs, each after those that it needs."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from adaptssr_jax.data import UserData
from experiments import finetune, pretrain
from experiments.comparison.methods import METHODS, Method


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
  def alike(self) -> str:
    """What runs that take about as long have in common."""
    return 'pretrain'


@dataclasses.dataclass(frozen=True)
class Cell:
  """A method on a task: a fine-tuned model, or a baseline if without a seed."""

  method: str
  task: str
  share: float
  split: int
  seed: int | None

  @property
  def name(self) -> str:
    """Its folder in that of the comparison."""
    place = f'cells/{self.method}/{self.task}/share_{self.share:g}'
    seed = '' if self.seed is None else f'/seed_{self.seed}'
    return f'{place}/split_{self.split}{seed}'

  @property
  def alike(self) -> str:
    """What runs that take about as long have in common."""
    model = self.method if self.seed is None else 'model'
    return f'{model}/{self.task}/{self.share:g}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """What is compared.

  Args:
    folder: of the comparison.
    data: the flags of the data set.
    methods: the rows, by name.
    tasks: the columns: the data of each task, with the stored splits.
    shares: of the training rows.
    splits: seeds of the splits.
    seeds: of fine-tuning.
    crossed: every seed in every split; else the first seed in the first split,
      the second in the second, and so on, round the shorter of the two.
    pretrain_seeds: of pre-training; fine-tuning goes round them.
    pretraining: the flags of pre-training, by the flag that named the file.
    pretrain_data: name of the data of pre-training; nothing if there is none.
    finetuning: the flags of fine-tuning, by kind.
  """

  folder: pathlib.Path
  data: Mapping[str, Any]
  methods: Mapping[str, Method]
  tasks: Mapping[str, UserData]
  shares: tuple[float, ...]
  splits: tuple[int, ...]
  seeds: tuple[int, ...]
  crossed: bool
  pretrain_seeds: tuple[int, ...]
  pretraining: Mapping[str, pretrain.PretrainSettings]
  pretrain_data: str
  finetuning: Mapping[str, finetune.FinetuneSettings]

  def method(self, name: str) -> Method:
    """The method of this name, a row of the table or what a row starts from."""
    return (METHODS | self.methods)[name]

  def runs(self) -> list[tuple[int, int]]:
    """The (split, seed) of all fine-tuned models of a number of the table."""
    if self.crossed:
      return list(itertools.product(self.splits, self.seeds))
    pairs = zip(itertools.cycle(self.splits), itertools.cycle(self.seeds))
    longer = max(len(self.splits), len(self.seeds))
    return list(itertools.islice(pairs, longer))

  def shape(self) -> dict[str, Any]:
    """The encoder that all methods have, as far as pre-training says it."""
    fields = {}
    for flags in ('warm_start', 'pretrain'):
      if flags in self.pretraining:
        fields |= self.pretraining[flags].encoder_fields()
    fields.pop('dropout_rate', None)
    return fields


def plan(grid: Grid) -> list[Pretraining | Cell]:
  """All runs, each after those that it needs, method by method."""
  runs: list[Pretraining | Cell] = []
  for name in grid.methods:
    for seed in grid.pretrain_seeds:
      runs += _pretrainings(grid, name, seed)
    for task in grid.tasks:
      for share in grid.shares:
        runs += cells_of(grid, name, task, share)
  return list(dict.fromkeys(runs))


def cells_of(grid: Grid, name: str, task: str, share: float) -> list[Cell]:
  """The cells behind one number of the table; none where it is a dash."""
  method = grid.methods[name]
  if grid.tasks[task].kind not in method.kinds:
    return []
  runs = grid.runs()
  if method.baseline:
    # It has nothing random.
    runs = [(split, None) for split in grid.splits]
  return [Cell(name, task, share, split, seed) for split, seed in runs]


def _pretrainings(grid: Grid, name: str, seed: int) -> Iterator[Pretraining]:
  method = grid.method(name)
  for needed in (method.after, method.steps_of):
    if needed:
      yield from _pretrainings(grid, needed, seed)
  if method.flags:
    yield Pretraining(name, seed)
