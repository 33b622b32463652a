"""From the flags of pre-training to its objective."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax import augment
from adaptssr_jax.data import UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.adaptssr import rank_views
from adaptssr_jax.objectives.causal_items import causal_items_objective
from adaptssr_jax.objectives.masked_items import (
  init_masked_items,
  masked_items_objective,
)
from adaptssr_jax.objectives.next_items import next_items_objective
from adaptssr_jax.objectives.pooled_items import (
  init_projection,
  predict_views,
)
from adaptssr_jax.objectives.users import last_behaviours, user_keys
from adaptssr_jax.objectives.views import (
  encode_views,
  sum_objective,
  views_objective,
)
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import LossFn
from experiments.flags.objectives import (
  OF_VIEWS,
  OVER_ALL_ITEMS,
  ObjectiveSettings,
  augmentations_of,
  parse_fusion,
  parse_weights,
  shares_views,
  uses_histories,
)
from experiments.flags.pretraining import longest_sequence
from experiments.flags.shared import LEAVE_ONE_OUT
from experiments.pretraining.augmentations import view_augmentations

# Users whose negatives are compared at a time.
_BLOCK = 256
_COUNTED_AT_ONCE = 2**24


def make_objective(
  settings: ObjectiveSettings,
  encoder: UserEncoder,
  buckets: Buckets,
  *,
  is_training: bool,
) -> LossFn:
  """The objective of the flags, or the weighted sum of several.

  Args:
    settings: the flags.
    encoder: that is trained.
    buckets: in which parts its sequences are encoded.
    is_training: False gives the loss to validate with: without dropout, where
      the objective allows that, and of the last behaviours.

  Returns:
    (params, batch, key) -> loss, metrics.
  """
  weights = parse_weights(settings)
  groups = [(name,) for name in settings.objective]
  if shares_views(settings):
    others = [group for group in groups if group[0] not in OF_VIEWS]
    groups = [OF_VIEWS, *others]
  made = {}
  for group in groups:
    make = functools.partial(_of_items, group[0])
    if group[0] in OF_VIEWS:
      make = functools.partial(_of_views, group, weights)
    made['_and_'.join(group)] = make(
      settings, encoder, buckets, is_training=is_training
    )
  if len(made) == 1:
    (only,) = made.values()
    return only
  return functools.partial(sum_objective, objectives=made, weights=weights)


def sampled_of(settings: ObjectiveSettings) -> int:
  """How many items of a training step estimate a softmax; 0: it is exact."""
  uses_softmax = set(settings.objective) & set(OVER_ALL_ITEMS)
  return settings.sampled_items if uses_softmax else 0


def init_head(
  settings: ObjectiveSettings,
  encoder: UserEncoder,
  *,
  shares: np.ndarray | None,
) -> dict[str, Any]:
  """The parameters of the objectives that the encoder lacks.

  Args:
    settings: the flags.
    encoder: that is trained.
    shares: of `item_shares`, at whose log the bias of each id starts; None
      starts it at zero.
  """
  if settings.objective == ('adaptssr',):
    return {}
  head = init_masked_items(encoder)
  if shares is not None and settings.output_bias == 'shares':
    head = {'bias': jnp.asarray(np.log(shares), jnp.float32)}
  if {'pooled_items', 'next_items'} & set(settings.objective):
    head |= init_projection(encoder)
  return {'head': head}


def item_shares(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The share of each id, counted with one more, so that none is zero."""
  counts = np.ones(encoder.mask_id)
  values = users.items.values
  # Piece by piece: to count, NumPy makes a copy of what it counts.
  for start in range(0, len(values), _COUNTED_AT_ONCE):
    counts += np.bincount(
      values[start : start + _COUNTED_AT_ONCE], minlength=encoder.mask_id
    )
  return counts / counts.sum()


def _of_views(
  names: tuple[str, ...],
  weights: dict[str, float],
  settings: ObjectiveSettings,
  encoder: UserEncoder,
  buckets: Buckets,
  *,
  is_training: bool,
) -> LossFn:
  """AdaptSSR, pooled items, or both of the same views."""
  ranks = 'adaptssr' in names
  losses = {
    'pooled_items': functools.partial(predict_views, axis_name=AXIS),
    'adaptssr': functools.partial(
      rank_views,
      fusion=parse_fusion(settings.fusion),
      form=settings.loss_form,
      hard_negatives=settings.hard_negatives,
      temperature=settings.temperature,
      smooth=settings.smooth,
      # All rankings of a small batch fit, and take less time at once.
      block_size=_BLOCK if settings.hard_negatives else 4 * _BLOCK,
      axis_name=AXIS,
    ),
  }
  views = ('slice',) if not ranks else augmentations_of(settings)
  objective = functools.partial(
    views_objective,
    losses={name: losses[name] for name in names},
    # Weighted here if it is a sum already.
    weights=weights if len(names) > 1 else None,
    encode=functools.partial(
      encode_views,
      encoder=encoder,
      augmentations=view_augmentations(settings, encoder, views, ranks),
      # AdaptSSR needs dropout in validation too: it makes the implicit views.
      passes=2 if ranks else 1,
      deterministic=not (ranks or is_training),
      buckets=buckets,
    ),
  )
  if 'slice' in views:
    return objective
  return _on_window(
    settings, objective, encoder.max_length, is_training=is_training
  )


def _of_items(
  name: str,
  settings: ObjectiveSettings,
  encoder: UserEncoder,
  buckets: Buckets,
  *,
  is_training: bool,
) -> LossFn:
  """Masked items, each next item, or the next items after a prefix."""
  shared = {
    'encoder': encoder,
    'deterministic': not is_training,
    'buckets': buckets,
    'axis_name': AXIS,
  }
  if name == 'next_items':
    return functools.partial(
      next_items_objective, num_next=settings.num_next, **shared
    )
  if name == 'causal_items':
    # The users that leave-one-out validates are those it trains on, with one
    # item more, which alone is new.
    last_only = settings.split == LEAVE_ONE_OUT and not is_training
    objective = functools.partial(
      causal_items_objective, last_only=last_only, **shared
    )
    length = longest_sequence(settings, encoder.max_length)
  else:
    length = encoder.max_length
    objective = functools.partial(
      masked_items_objective, ratio=settings.mask_ratio or 0.3, **shared
    )
  return _on_window(settings, objective, length, is_training=is_training)


def _on_window(
  settings: ObjectiveSettings,
  objective: LossFn,
  length: int,
  *,
  is_training: bool,
) -> LossFn:
  """Shows an objective so many behaviours, where batches hold more of them."""
  # Without histories, windows are drawn where batches are made.
  is_drawn = is_training and uses_histories(settings)
  return functools.partial(
    see_window,
    objective=objective,
    length=length,
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
