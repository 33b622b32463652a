"""From the flags of pre-training to its objective."""

import dataclasses
import functools
from typing import Any

import numpy as np

from adaptssr_jax import augment
from adaptssr_jax.buckets import Buckets
from adaptssr_jax.devices import AXIS
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.adaptssr import adaptssr_objective
from adaptssr_jax.objectives.masked_items import (
  init_masked_items,
  masked_items_objective,
)
from adaptssr_jax.train import LossFn
from experiments.causal_items import CAUSAL_ITEMS, make_causal_items
from experiments.settings import Settings, SettingsError, flag

# Users whose negatives are compared at a time.
_BLOCK = 256
AUGMENTATIONS = ('crop', 'mask', 'reorder')
# Objectives that guess items from one encoding of a user.
_OF_ITEMS = ('masked_items', CAUSAL_ITEMS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Settings):
  """How strong the augmentations are."""

  crop_ratio: float = flag(
    0.4, 'Share of the behaviours that crop keeps.', above=0.0, high=1.0
  )
  mask_ratio: float | None = flag(
    0.6, 'Share of the behaviours that mask hides.', above=0.0, high=1.0
  )
  reorder_ratio: float = flag(
    0.6, 'Share of the behaviours that reorder shuffles.', above=0.0, high=1.0
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(AugmentationSettings):
  """What is learned from behaviours alone."""

  objective: str = flag(
    'adaptssr',
    'What is learned: to rank augmented views, to guess masked items, or to '
    'guess each next item.',
    choices=('adaptssr', 'masked_items', CAUSAL_ITEMS),
  )
  augmentations: tuple[str, ...] = flag(
    AUGMENTATIONS,
    'adaptssr: explicit augmentations, one drawn per view.',
    choices=AUGMENTATIONS,
  )
  second_augmentations: tuple[str, ...] | None = flag(
    None,
    'adaptssr: those of the second view [the same as of the first].',
    choices=AUGMENTATIONS,
  )
  mask_ratio: float | None = flag(
    None,
    'Share of the behaviours that are masked [adaptssr 0.6, masked_items 0.3].',
    above=0.0,
    high=1.0,
  )
  fusion: str = flag(
    'adaptive',
    'Lambda: adaptive (one per user), batch_mean, or a number in [0, 1].',
  )
  hard_negatives: bool = flag(
    True, 'adaptssr: rank the hardest pairs of a batch, rather than all.'
  )
  sampled_items: int = flag(
    0,
    'masked_items, causal_items: train on a softmax over this many sampled '
    'items; 0: over all of them.',
    low=0,
  )


def make_objective(
  settings: ObjectiveSettings, encoder: UserEncoder, buckets: Buckets
) -> tuple[LossFn, LossFn]:
  """The objective of the flags.

  Returns:
    The loss to train on and the loss to validate with, both (params, batch,
    key) -> loss, metrics.
  """
  if settings.objective == 'masked_items':
    return _masked_items(settings, encoder, buckets)
  if settings.objective == CAUSAL_ITEMS:
    return make_causal_items(settings, encoder, buckets)
  loss_fn = _adaptssr(settings, encoder, buckets)
  # It needs dropout in validation too: that makes the implicit views.
  return loss_fn, loss_fn


def init_head(
  settings: ObjectiveSettings, encoder: UserEncoder
) -> dict[str, Any]:
  """The parameters of the objective that the encoder lacks."""
  if settings.objective in _OF_ITEMS:
    return {'head': init_masked_items(encoder)}
  return {}


def encoded_of_a_user(settings: ObjectiveSettings) -> int:
  """How many sequences are encoded of each user: two views, each twice."""
  return 1 if settings.objective in _OF_ITEMS else 4


def encoded_lengths(
  settings: ObjectiveSettings, lengths: np.ndarray
) -> np.ndarray:
  """How long the sequences are that are encoded of users so long."""
  if settings.objective in _OF_ITEMS:
    return lengths
  first = settings.augmentations
  views = [
    # Only crop makes a sequence shorter.
    np.ceil(settings.crop_ratio * lengths) if name == 'crop' else lengths
    for names in (first, settings.second_augmentations or first)
    for name in names
  ]
  return np.concatenate(views).astype(int)


def _masked_items(
  settings: ObjectiveSettings, encoder: UserEncoder, buckets: Buckets
) -> tuple[LossFn, LossFn]:
  loss_fn = functools.partial(
    masked_items_objective,
    encoder=encoder,
    ratio=settings.mask_ratio or 0.3,
    buckets=buckets,
    axis_name=AXIS,
  )
  train_fn = functools.partial(loss_fn, sampled_items=settings.sampled_items)
  validate_fn = functools.partial(loss_fn, deterministic=True)
  return train_fn, validate_fn


def _adaptssr(
  settings: ObjectiveSettings, encoder: UserEncoder, buckets: Buckets
) -> LossFn:
  choices = make_augmentations(settings, encoder.mask_id)
  first = settings.augmentations
  second = settings.second_augmentations or first
  return functools.partial(
    adaptssr_objective,
    encoder=encoder,
    augmentations=tuple(
      augment.one_of(*[choices[name] for name in names])
      for names in (first, second)
    ),
    fusion=parse_fusion(settings.fusion),
    hard_negatives=settings.hard_negatives,
    # All rankings of a small batch fit, and take less time at once.
    block_size=_BLOCK if settings.hard_negatives else 4 * _BLOCK,
    buckets=buckets,
    axis_name=AXIS,
  )


def make_augmentations(
  settings: AugmentationSettings, mask_id: int
) -> dict[str, augment.Augmentation]:
  """The augmentations by name, each (key, items) -> items.

  Args:
    settings: how strong they are.
    mask_id: the id that stands for a masked item.
  """
  return {
    'crop': functools.partial(augment.crop, ratio=settings.crop_ratio),
    'mask': functools.partial(
      augment.mask, ratio=settings.mask_ratio or 0.6, mask_id=mask_id
    ),
    'reorder': functools.partial(augment.reorder, ratio=settings.reorder_ratio),
  }


def parse_fusion(text: str) -> str | float:
  """The value of `--fusion`: a word, or a number in [0, 1]."""
  if text in ('adaptive', 'batch_mean'):
    return text
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise SettingsError(
      f'--fusion must be adaptive, batch_mean or a number in [0, 1], not {text}'
    )
  return value
