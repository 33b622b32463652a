"""Pre-train user models by self-supervised ranking (AdaptSSR) in JAX."""

from adaptssr_jax.augment import crop, mask, one_of, random_slice, reorder
from adaptssr_jax.checkpoint import restore_encoder
from adaptssr_jax.encoder import (
  TaskHead,
  UserEncoder,
  encoder_from_reference,
)
from adaptssr_jax.losses import (
  adaptssr_loss,
  augmentation_weight,
  bpr_loss,
  listwise_ranking_loss,
  mpr_loss,
)
from adaptssr_jax.training import TrainState, pmap_step

__all__ = [
  'TaskHead',
  'TrainState',
  'UserEncoder',
  'adaptssr_loss',
  'augmentation_weight',
  'bpr_loss',
  'crop',
  'encoder_from_reference',
  'listwise_ranking_loss',
  'mask',
  'mpr_loss',
  'one_of',
  'pmap_step',
  'random_slice',
  'reorder',
  'restore_encoder',
]
