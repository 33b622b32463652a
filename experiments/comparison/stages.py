"""The stages of pre-training, each with a flag file: what it has to train.

A new stage is a new entry of STAGES, a flag of `options.CompareSettings`, and a
row of `methods.METHODS` that has it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.comparison.methods import Method
from experiments.flags.binder import Settings, SettingsError, from_flagfile
from experiments.flags.pretraining import PretrainSettings, check_objective
from experiments.run import loop
from experiments.run.speed import check_table_update


class Stage(NamedTuple):
  """What the `--objective` of a flag file must be."""

  objectives: tuple[str, ...]  # those that it must have
  place: str  # whether it has them alone, has them first, or has them anywhere

  def allows(self, objectives: tuple[str, ...]) -> bool:
    """Whether a file with these objectives may be the stage's."""
    if self.place == 'alone':
      return objectives == self.objectives
    if self.place == 'first':
      return objectives[: len(self.objectives)] == self.objectives
    return set(self.objectives) <= set(objectives)

  @property
  def rule(self) -> str:
    """What a file must have, in words."""
    words = ','.join(self.objectives)
    ends = {'alone': '', 'first': ', or that and more', 'anywhere': ' among it'}
    return f'--objective={words}{ends[self.place]}'


# In the order in which they say the shape of an encoder that none of its own
# flags says: the last one that does.
STAGES = {
  'warm_start': Stage(('masked_items',), 'alone'),
  'pretrain': Stage(('adaptssr',), 'alone'),
  'first_stage': Stage(('pooled_items',), 'first'),
  'last_stage': Stage(('adaptssr',), 'anywhere'),
  'joint': Stage(('pooled_items', 'adaptssr'), 'anywhere'),
}


def read_pretraining(
  settings: Settings, methods: Mapping[str, Method], chosen: Sequence[str]
) -> dict[str, PretrainSettings]:
  """The flags of pre-training, as far as the methods need any."""
  needed = set().union(*(_stages_of(methods, name) for name in chosen))
  found = {}
  for name, stage in STAGES.items():
    path = getattr(settings, name)
    if not path and name not in needed:
      continue
    if not path:
      raise SettingsError(
        f'--{name}=FLAGFILE is needed by the --methods: it says how they are '
        'pre-trained'
      )
    found[name] = read_flagfile(PretrainSettings, settings, name)
    with naming(f'--{name}={path}'):
      check_training(found[name])
    if found[name].select_by == 'probe':
      raise SettingsError(
        f'--{name}={path}: leave out --select_by=probe, which looks at labels '
        'that are test labels in other splits'
      )
    if found[name].split != 'last_ten':
      raise SettingsError(
        f'--{name}={path}: leave out --split={found[name].split}: all methods '
        'are pre-trained on the same behaviours'
      )
    objectives = found[name].objective
    if not stage.allows(objectives):
      raise SettingsError(
        f'--{name}={path} must have {stage.rule}, not {",".join(objectives)}'
      )
  return found


def check_training(settings: PretrainSettings) -> None:
  """Refuses now what pre-training would refuse after hours of other runs."""
  loop.check_devices(settings)
  check_table_update(settings)
  check_objective(settings)


def _stages_of(methods: Mapping[str, Method], name: str) -> set[str]:
  """The stages whose files a method needs, and those that it starts from."""
  method = methods[name]
  needed = {method.flags, method.rate_of} - {''}
  for other in (method.after, method.steps_of):
    if other:
      needed |= _stages_of(methods, other)
  return needed


def read_flagfile(
  settings_type: type[Settings], settings: Settings, name: str
) -> Any:
  """The settings of the file that a flag names; the defaults if it is empty."""
  path = getattr(settings, name)
  if not path:
    return settings_type()
  with naming(f'--{name}={path}'):
    return from_flagfile(settings_type, path)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """An error of a flag file names the file."""
  try:
    yield
  except (flags.Error, SettingsError) as error:
    raise SettingsError(f'{path}: {error}') from error
