"""What all objectives are made with: encoding, augmentations, windows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from adaptssr_jax import augment
from adaptssr_jax.data import UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import (
  Encoding,
  last_behaviours,
  user_keys,
)
from adaptssr_jax.objectives.views import (
  Augmentations,
  Views,
  ViewsLoss,
  encode_views,
  views_objective,
)
from adaptssr_jax.training.step import LossFn
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import (
  AugmentationSettings,
  ObjectiveSettings,
  augmentations_of,
  slice_lengths_of,
  uses_histories,
)
from experiments.flags.traits import traits_of

# Users whose anchors are compared at a time.
BLOCK = 1024


def make_augmentations(
  settings: AugmentationSettings,
  mask_id: int,
  strength: Float[Array, ''] | None = None,
) -> dict[str, augment.Augmentation]:
  """The augmentations by name, each (key, items) -> items.

  Args:
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


class Context(NamedTuple):
  """What an objective is made of."""

  settings: ObjectiveSettings  # the flags
  users: UserArrays  # the users of the training split
  # How sequences are encoded. It is deterministic for the loss to validate
  # with, which reads the last behaviours of a user.
  encoding: Encoding

  @property
  def encoder(self) -> UserEncoder:
    """The encoder that is trained."""
    return self.encoding.encoder

  @property
  def is_training(self) -> bool:
    """Whether the objective trains, or else validates."""
    return not self.encoding.deterministic

  @property
  def with_dropout(self) -> Encoding:
    """The encoding of objectives that need dropout in validation too."""
    return dataclasses.replace(self.encoding, deterministic=False)


def encoding_of_views(
  context: Context, augmentations: Augmentations, *, passes: int = 1
) -> Callable[..., Views]:
  """`encode_views` for these augmentations, one for each view.

  Two dropout passes of a view differ in validation too.
  """
  return functools.partial(
    encode_views,
    encoding=context.with_dropout if passes > 1 else context.encoding,
    augmentations=augmentations,
    passes=passes,
  )


def loss_of_views(
  encode: Callable[..., Views],
  weights: Mapping[str, float] | None = None,
  **losses: ViewsLoss,
) -> LossFn:
  """The weighted sum of losses of the views that `encode` returns."""
  return functools.partial(
    views_objective, losses=losses, weights=weights, encode=encode
  )


def check_dropout(context: Context, objective: str) -> None:
  """Raises `SettingsError` where two dropout passes would be the same."""
  if not context.encoder.dropout_rate:
    raise SettingsError(
      f'--objective={objective} compares dropout passes, which '
      '--dropout_rate=0 makes the same: give a rate above 0'
    )


def on_window(context: Context, name: str, objective: LossFn) -> LossFn:
  """Cuts the histories of a batch to the length that an objective encodes.

  Objectives that draw slices, prefixes or partners get whole histories.
  """
  settings, traits = context.settings, traits_of(name)
  is_sliced = traits.is_augmented and 'slice' in augmentations_of(
    settings, name
  )
  if is_sliced or traits.sees_histories or traits.sees_partners:
    return objective
  # Without histories, windows are drawn where batches are made.
  is_drawn = context.is_training and uses_histories(settings)
  return functools.partial(
    see_window,
    objective=objective,
    length=context.encoder.max_length + traits.sees_target,
    window=settings.window if is_drawn else 'last',
  )


def see_window(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  objective: LossFn,
  length: int,
  window: str,
) -> tuple[jax.Array, dict[str, Any]]:
  """An objective of the last behaviours, or of a random run, of histories."""
  items = last_behaviours(batch['items'], length=length)
  if window == 'random':
    window_key, key = jax.random.split(key)
    keys = user_keys(window_key, batch['example_id'])
    draw = functools.partial(augment.random_slice, lengths=(length, length))
    items = jax.vmap(draw)(keys, batch['items'])[:, :length]
  return objective(params, batch | {'items': items}, key)
