"""Shared by the makers of objectives: augmentations, encoding, windows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
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
  no_augmentation,
  views_objective,
)
from adaptssr_jax.training.step import LossFn
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import (
  AugmentationSettings,
  ObjectiveSettings,
  traits_of,
)
from experiments.flags.pretraining import slice_lengths_of

# Number of users whose anchors are compared at a time.
BLOCK = 1024
_COUNTED_AT_ONCE = 2**24


def make_augmentations(
  settings: AugmentationSettings,
  mask_id: int,
  strength: Float[Array, ''] | None = None,
) -> dict[str, augment.Augmentation]:
  """The augmentations by name, each (key, items) -> items.

  Args:
    strength: a factor in (0, 1] of what the augmentations change, as in a
      curriculum; None means 1.
  """
  crop = settings.crop_ratio
  mask = settings.mask_ratio or 0.6
  reorder = settings.reorder_ratio
  if strength is not None:
    # The share that is cut off grows, not the share that is kept.
    crop = 1 - strength * (1 - crop)
    mask, reorder = strength * mask, strength * reorder
  return {
    'crop': functools.partial(augment.crop, ratio=crop),
    'mask': functools.partial(augment.mask, ratio=mask, mask_id=mask_id),
    'reorder': functools.partial(augment.reorder, ratio=reorder),
  }


class Context(NamedTuple):
  """What the maker of an objective needs to know of a run."""

  settings: ObjectiveSettings  # the flags
  users: UserArrays  # the users of the training split
  # How sequences are encoded. It is deterministic for the validation loss,
  # which also reads the last behaviours of a user instead of a random window.
  encoding: Encoding
  num_steps: int  # the number of updates of the run

  @property
  def encoder(self) -> UserEncoder:
    """The encoder that is trained."""
    return self.encoding.encoder

  @property
  def is_training(self) -> bool:
    """True for the training loss, False for the validation loss."""
    return not self.encoding.deterministic

  @property
  def with_dropout(self) -> Encoding:
    """The encoding for objectives that need dropout in validation too."""
    return dataclasses.replace(self.encoding, deterministic=False)


def view_augmentations(
  context: Context, objective: str, strength: Float[Array, ''] | None = None
) -> tuple[augment.Augmentation, ...]:
  """One augmentation for each view of an objective.

  Args:
    strength: see `make_augmentations`.
  """
  settings, encoder = context.settings, context.encoder
  make = functools.partial(
    _augmentation,
    choices=make_augmentations(settings, encoder.mask_id, strength),
    lengths=slice_lengths_of(settings, encoder.max_length),
  )
  return tuple(map(make, traits_of(settings, objective).augmentations))


def _augmentation(
  names: tuple[str, ...],
  *,
  choices: dict[str, augment.Augmentation],
  lengths: tuple[int, int],
) -> augment.Augmentation:
  """Draws a slice if `names` has slice, and then applies one of the others."""
  if not names:
    return no_augmentation
  edits = [choices[name] for name in names if name != 'slice']
  steps: list[Callable] = []
  if 'slice' in names:
    steps.append(functools.partial(augment.random_slice, lengths=lengths))
  if edits:
    steps.append(augment.one_of(*edits))
  return steps[0] if len(steps) == 1 else augment.compose(*steps)


def encoding_of_views(
  context: Context, objective: str, augmentations: Augmentations | None = None
) -> Callable[..., Views]:
  """`encode_views` with the views and the dropout passes of an objective.

  With several passes dropout stays on in validation, or they would be equal.

  Args:
    augmentations: of its views, if they are not those of `view_augmentations`.
  """
  passes = traits_of(context.settings, objective).passes
  return functools.partial(
    encode_views,
    encoding=context.with_dropout if passes > 1 else context.encoding,
    augmentations=augmentations or view_augmentations(context, objective),
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
  """Raises `SettingsError` if two dropout passes would be the same."""
  if not context.encoder.dropout_rate:
    raise SettingsError(
      f'--objective={objective} compares dropout passes, which '
      '--dropout_rate=0 makes the same: give a rate above 0'
    )


def with_window(context: Context, name: str, objective: LossFn) -> LossFn:
  """An objective that gets histories cut to the length that it encodes.

  Objectives that draw slices, prefixes or partners get full histories.
  """
  settings, traits = context.settings, traits_of(context.settings, name)
  if traits.sees_histories or traits.sees_partners:
    return objective
  # If batches do not hold full histories, windows are drawn with the batch.
  has_histories = any(each.sees_histories for each in settings.traits)
  is_drawn = context.is_training and has_histories
  return functools.partial(
    run_on_window,
    objective=objective,
    length=context.encoder.max_length + traits.sees_target,
    window=settings.window if is_drawn else 'last',
  )


def run_on_window(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  objective: LossFn,
  length: int,
  window: str,
) -> tuple[jax.Array, dict[str, Any]]:
  """Calls an objective on the last or a random window of each history."""
  items = last_behaviours(batch['items'], length=length)
  if window == 'random':
    window_key, key = jax.random.split(key)
    keys = user_keys(window_key, batch['example_id'])
    draw = functools.partial(augment.random_slice, lengths=(length, length))
    items = jax.vmap(draw)(keys, batch['items'])[:, :length]
  return objective(params, batch | {'items': items}, key)


def item_counts(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The number of behaviours per id, int64 [1 + items]; id 0 is padding.

  Example:
    >>> from adaptssr_jax.data import Ragged
    >>> users = UserArrays(None, Ragged.from_rows([[1, 1, 1], [3, 1]]))
    >>> item_counts(UserEncoder(3), users).tolist()
    [0, 4, 0, 1]
  """
  counts = np.zeros(encoder.mask_id, np.int64)
  values = users.items.values
  # In parts, since NumPy copies the values that it counts.
  for start in range(0, len(values), _COUNTED_AT_ONCE):
    some = values[start : start + _COUNTED_AT_ONCE]
    # With --plan_items the encoder may know fewer items than the data.
    counts += np.bincount(some, minlength=len(counts))[: len(counts)]
  return counts
