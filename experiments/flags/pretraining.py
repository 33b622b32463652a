"""The flags of pre-training, and what the objective decides and refuses."""

import dataclasses
import sys
from typing import TypeVar

from experiments.flags.binder import SettingsError, flag
from experiments.flags.objectives import (
  ObjectiveSettings,
  augmentations_of,
  parse_fusion,
  parse_weights,
  slice_lengths_of,
)
from experiments.flags.shared import EncoderSettings, PlanSettings
from experiments.flags.traits import traits_of

CAUSAL_ITEMS = 'causal_items'
_Settings = TypeVar('_Settings', bound=EncoderSettings)


# The item table starts wider where the user vector predicts items: at 0.02 its
# scores are so close to each other that training stands still for epochs.
_ITEM_STDDEV = 0.06
# Of IDICL, whose paper was not found: the interests of a user.
_INTERESTS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(PlanSettings, EncoderSettings, ObjectiveSettings):
  """The flags of pre-training."""

  init_from: str = flag(
    '', 'Workdir of a run whose encoder to start from; else at random.'
  )
  select_by: str = flag(
    'loss',
    'How the best epoch is chosen. loss: by the validation loss. probe: by a '
    'regression on the user vectors for --probe_task, by its accuracy, its AUC '
    '(conversion) or NDCG@10 (ranking); the mean of several tasks.',
    choices=('loss', 'probe'),
  )
  probe_task: tuple[str, ...] = flag(
    ('gender',),
    '--select_by=probe: the tasks of the probe, fitted on their training rows '
    'and scored on their validation rows of the stored split. With another '
    '--split_seed in fine-tuning, these rows may be test rows there.',
  )

  def mutable_names(self) -> set[str]:
    """Not the length of a run over which augmentations grow stronger."""
    free = super().mutable_names()
    grows = any(traits_of(name).has_curriculum for name in self.objective)
    if grows and not self.curriculum_steps:
      free -= {'num_epochs', 'num_steps'}
    return free


def with_defaults(settings: PretrainSettings) -> PretrainSettings:
  """The settings with the flags that the objective decides, unless given."""
  if 'idicl' in settings.objective and not settings.init_from:
    pooling = settings.cosine_pooling
    settings = dataclasses.replace(
      settings,
      num_queries=settings.num_queries or _INTERESTS,
      cosine_pooling=True if pooling is None else pooling,
    )
  predicts = any(traits_of(name).from_the_vector for name in settings.objective)
  if settings.item_stddev is None and predicts:
    return dataclasses.replace(settings, item_stddev=_ITEM_STDDEV)
  return settings


def with_causal_encoder(settings: _Settings) -> _Settings:
  """The settings, with the encoder that causal items need unless given."""
  if CAUSAL_ITEMS not in settings.objective:
    return settings
  if settings.causal is False:
    raise SettingsError(
      '--objective=causal_items needs --causal=true, or each state would see '
      'the item that it is to guess: leave --causal out'
    )
  readout = settings.readout
  if settings.objective == (CAUSAL_ITEMS,):
    # The last state is what learns to guess, and the pooling learns nothing.
    readout = readout or 'last'
  return dataclasses.replace(settings, causal=True, readout=readout)


def longest_sequence(settings: EncoderSettings, max_length: int) -> int:
  """Behaviours of a user that a step needs: some objectives need a label."""
  return max_length + any(
    traits_of(name).sees_target for name in settings.objective
  )


def check_objective(settings: ObjectiveSettings) -> None:
  """Raises `SettingsError` where flags of the objective cannot be used."""
  parse_weights(settings)
  parse_fusion(settings.fusion)
  # What the encoder reads, only the encoder knows.
  slice_lengths_of(settings, sys.maxsize)
  if len(set(settings.objective)) < len(settings.objective):
    raise SettingsError(
      f'--objective={",".join(settings.objective)} names one twice: give each '
      'once, and --objective_weights'
    )
  if settings.window == 'random' and any(
    traits_of(name).sees_partners for name in settings.objective
  ):
    raise SettingsError(
      '--window=random does not go with --objective=duorec, whose users share '
      'the last of all behaviours: leave --window out'
    )
  _check_second(settings)
  _check_ranking(settings)


def _check_second(settings: ObjectiveSettings) -> None:
  """Refuses --second_augmentations that are not of a second view."""
  second = settings.second_augmentations
  for name in settings.objective if second else ():
    first = augmentations_of(settings, name)
    if traits_of(name).is_augmented and ('slice' in first) != (
      'slice' in second
    ):
      raise SettingsError(
        f'--objective={name}: --second_augmentations={",".join(second)} and '
        f'--augmentations={",".join(first)}: give slice to both views or to '
        'neither'
      )
  if second and settings.num_slices != 2:
    raise SettingsError(
      f'--second_augmentations is for two views, not --num_slices='
      f'{settings.num_slices}: leave out either'
    )


def _check_ranking(settings: ObjectiveSettings) -> None:
  """Refuses settings of AdaptSSR that its --loss_form does not have."""
  if settings.smooth and (
    settings.loss_form == 'list' or not settings.hard_negatives
  ):
    raise SettingsError(
      f'--smooth={settings.smooth:g} is for hard pairs: leave it out, or '
      '--loss_form=list and --hard_negatives=false'
    )
  if settings.loss_form == 'list' and not settings.hard_negatives:
    raise SettingsError(
      '--hard_negatives=false is for --loss_form=pairs; a list has all '
      'negatives: leave it out'
    )
