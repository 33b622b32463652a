"""From the flags of pre-training to its objective.

Objectives that rank views or predict items are made here, and those that
contrast users in `contrastive`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.data import UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.adaptssr import rank_views
from adaptssr_jax.objectives.causal_items import causal_items_objective
from adaptssr_jax.objectives.ecl import ecl_objective, init_discriminator
from adaptssr_jax.objectives.masked_items import (
  init_masked_items,
  masked_items_objective,
)
from adaptssr_jax.objectives.msdp import init_msdp, msdp_objective
from adaptssr_jax.objectives.next_items import next_items_objective
from adaptssr_jax.objectives.pooled_items import (
  init_projection,
  predict_views,
)
from adaptssr_jax.objectives.ptum import ptum_objective
from adaptssr_jax.objectives.views import sum_objective
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import LossFn
from experiments.flags.binder import function_of
from experiments.flags.objectives import traits_of
from experiments.flags.pretraining import (
  OF_VIEWS,
  PretrainSettings,
  parse_fusion,
  parse_weights,
  shares_views,
)
from experiments.flags.shared import LEAVE_ONE_OUT
from experiments.pretraining import contrastive
from experiments.pretraining.context import (
  BLOCK,
  Context,
  check_dropout,
  encoding_of_views,
  item_counts,
  loss_of_views,
  with_window,
)

# Number of users whose anchors a ranking compares at a time.
_RANKED = 256
_predict_views = functools.partial(predict_views, axis_name=AXIS)


def make_masked_items(context: Context) -> LossFn:
  """Predicts masked items."""
  return functools.partial(
    masked_items_objective,
    ratio=traits_of(context.settings, 'masked_items').mask_ratio,
    encoding=context.encoding,
  )


def make_causal_items(context: Context) -> LossFn:
  """Predicts each next item."""
  # With leave-one-out the validation users are the training users with one more
  # item, and only this item is new.
  is_leave_one_out = context.settings.split == LEAVE_ONE_OUT
  return functools.partial(
    causal_items_objective,
    last_only=is_leave_one_out and not context.is_training,
    encoding=context.encoding,
  )


def make_next_items(context: Context) -> LossFn:
  """Predicts the items after a prefix from its vector."""
  return functools.partial(
    next_items_objective,
    num_next=context.settings.num_next,
    encoding=context.encoding,
  )


def make_pooled_items(context: Context) -> LossFn:
  """Predicts the items of a slice from the vector of another slice."""
  encode = encoding_of_views(context, 'pooled_items')
  return loss_of_views(encode, pooled_items=_predict_views)


def make_adaptssr(
  context: Context,
  weights: dict[str, float] | None = None,
  *,
  with_pooled: bool = False,
) -> LossFn:
  """Ranks views; optionally also predicts items from the same views.

  Args:
    weights: of the two losses, by name; None: 1 each.
    with_pooled: whether the loss of pooled items is added.
  """
  settings = context.settings
  ranks = functools.partial(
    rank_views,
    fusion=parse_fusion(settings.fusion),
    form=settings.loss_form,
    hard_negatives=settings.hard_negatives,
    temperature=traits_of(settings, 'adaptssr').temperature,
    smooth=settings.smooth,
    # Without hard negatives a small batch is one block, which takes less time.
    block_size=_RANKED if settings.hard_negatives else BLOCK,
    axis_name=AXIS,
  )
  predicts = {'pooled_items': _predict_views} if with_pooled else {}
  # Dropout makes the implicit views: each explicit one has two passes.
  encode = encoding_of_views(context, 'adaptssr')
  return loss_of_views(encode, weights, **predicts, adaptssr=ranks)


def make_ptum(context: Context) -> LossFn:
  """Distinguishes masked and last behaviours from random items."""
  return functools.partial(ptum_objective, encoding=context.encoding)


def make_msdp(context: Context) -> LossFn:
  """Predicts the shares of items in a window from the prefix before it."""
  settings = context.settings
  return functools.partial(
    msdp_objective,
    max_window=settings.max_window,
    regularizer=settings.msdp_regularizer,
    ratio=traits_of(settings, 'msdp').mask_ratio,
    encoding=context.encoding,
  )


def make_ecl(context: Context) -> LossFn:
  """Detects which behaviours have been replaced, given the user vector."""
  settings = context.settings
  check_dropout(context, 'ecl')
  return functools.partial(
    ecl_objective,
    ratio=traits_of(settings, 'ecl').mask_ratio,
    contrast=settings.ecl_contrast,
    discriminator=settings.ecl_discriminator,
    temperature=traits_of(settings, 'ecl').temperature,
    block_size=BLOCK,
    encoding=context.encoding,
  )


MAKERS = {
  'adaptssr': make_adaptssr,
  'masked_items': make_masked_items,
  'causal_items': make_causal_items,
  'pooled_items': make_pooled_items,
  'next_items': make_next_items,
  'clue': contrastive.make_clue,
  'cl4srec': contrastive.make_cl4srec,
  'idicl': contrastive.make_idicl,
  'ccl': contrastive.make_ccl,
  'ccl_filled': contrastive.make_ccl_filled,
  'coles': contrastive.make_coles,
  'ptum': make_ptum,
  'msdp': make_msdp,
  'ecl': make_ecl,
  'coserec': contrastive.make_coserec,
  'duorec': contrastive.make_duorec,
}


def make_objective(context: Context) -> LossFn:
  """The objective of the flags, or the weighted sum of several."""
  settings = context.settings
  weights = parse_weights(settings)
  made, names = {}, list(settings.objective)
  if shares_views(settings):
    names = [name for name in names if name not in OF_VIEWS]
    shared = make_adaptssr(context, weights, with_pooled=True)
    made['_and_'.join(OF_VIEWS)] = shared
  for name in names:
    if name in MAKERS:
      objective = MAKERS[name](context)
    else:
      own = function_of('objective', name)
      objective = functools.partial(own, encoding=context.encoding)
    made[name] = with_window(context, name, objective)
  if len(made) == 1:
    (only,) = made.values()
    return only
  return functools.partial(sum_objective, objectives=made, weights=weights)


def init_head(
  settings: PretrainSettings, encoder: UserEncoder, users: UserArrays
) -> dict[str, Any]:
  """Initialises the parameters that objectives add to the encoder.

  Args:
    users: the training split. With --output_bias=shares the bias of each id
      starts at the log of its share of their behaviours, with 1 added to each
      count.
  """
  head, traits = {}, settings.traits
  if any(each.has_bias for each in traits):
    head |= init_masked_items(encoder)
    # A plan needs only the shape, and may have more items than memory holds.
    if settings.output_bias == 'shares' and not settings.plan:
      counts = 1.0 + item_counts(encoder, users)
      bias = np.log(counts / counts.sum())
      head['bias'] = jnp.asarray(bias, jnp.float32)
  if any(each.from_the_vector for each in traits):
    head |= init_projection(encoder)
  if 'msdp' in settings.objective:
    head |= init_msdp(encoder, max_window=settings.max_window)
  if 'ecl' in settings.objective:
    # The run splits the key of its seed into keys 0 to 2.
    key = jax.random.fold_in(jax.random.key(settings.seed), 3)
    head |= init_discriminator(encoder, key)
  for name in settings.objective:
    if ':' in name:
      init = getattr(function_of('objective', name), 'init_head', None)
      head |= init(encoder) if init else {}
  return {'head': head} if head else {}
