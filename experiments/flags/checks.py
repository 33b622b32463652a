"""Flags of the objectives that do not go with each other."""

import sys

from experiments.flags.binder import SettingsError
from experiments.flags.objectives import (
  ObjectiveSettings,
  augmentations_of,
  parse_fusion,
  parse_weights,
  slice_lengths_of,
)
from experiments.flags.traits import traits_of


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
