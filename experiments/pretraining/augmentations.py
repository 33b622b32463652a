"""The augmentations of the flags."""

import functools
from collections.abc import Callable

from jaxtyping import Array, Float

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from experiments.flags.objectives import (
  AugmentationSettings,
  ObjectiveSettings,
  slice_lengths_of,
)


def make_augmentations(
  settings: AugmentationSettings,
  mask_id: int,
  strength: Float[Array, ''] | None = None,
) -> dict[str, augment.Augmentation]:
  """The augmentations by name, each (key, items) -> items.

  Args:
    settings: how strong they are.
    mask_id: the id that stands for a masked item.
    strength: the share of that by which they edit, as of a curriculum; None:
      all of it.
  """
  crop = settings.crop_ratio
  mask = settings.mask_ratio or 0.6
  reorder = settings.reorder_ratio
  if strength is not None:
    # What is cut off grows, not what is kept.
    crop = 1 - strength * (1 - crop)
    mask, reorder = strength * mask, strength * reorder
  return {
    'crop': functools.partial(augment.crop, ratio=crop),
    'mask': functools.partial(augment.mask, ratio=mask, mask_id=mask_id),
    'reorder': functools.partial(augment.reorder, ratio=reorder),
  }


def view_augmentations(
  settings: ObjectiveSettings,
  encoder: UserEncoder,
  first: tuple[str, ...],
  strength: Float[Array, ''] | None = None,
  *,
  has_second: bool,
) -> tuple[augment.Augmentation, ...]:
  """One augmentation for each view.

  Args:
    encoder: that reads the views.
    first: the names of those of the first view.
    has_second: whether --second_augmentations is of this objective.
  """
  second = (settings.second_augmentations if has_second else None) or first
  choices = make_augmentations(settings, encoder.mask_id, strength)
  make = functools.partial(
    _augmentation,
    choices=choices,
    lengths=slice_lengths_of(settings, encoder.max_length),
  )
  return make(first), *[make(second)] * (settings.num_slices - 1)


def _augmentation(
  names: tuple[str, ...],
  *,
  choices: dict[str, augment.Augmentation],
  lengths: tuple[int, int],
) -> augment.Augmentation:
  """A slice if that is named, and then one of the others."""
  edits = [choices[name] for name in names if name != 'slice']
  steps: list[Callable] = []
  if 'slice' in names:
    steps.append(functools.partial(augment.random_slice, lengths=lengths))
  if edits:
    steps.append(augment.one_of(*edits))
  return steps[0] if len(steps) == 1 else augment.in_turn(*steps)
