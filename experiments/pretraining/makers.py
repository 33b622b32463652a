"""How the flags make each objective that ranks views or predicts items."""

import functools

from adaptssr_jax.objectives.adaptssr import rank_views
from adaptssr_jax.objectives.causal_items import causal_items_objective
from adaptssr_jax.objectives.ecl import ecl_objective
from adaptssr_jax.objectives.masked_items import masked_items_objective
from adaptssr_jax.objectives.msdp import msdp_objective
from adaptssr_jax.objectives.next_items import next_items_objective
from adaptssr_jax.objectives.pooled_items import (
  pooled_items_objective,
  predict_views,
)
from adaptssr_jax.objectives.ptum import ptum_objective
from adaptssr_jax.objectives.views import (
  ViewsLoss,
  encode_views,
  views_objective,
)
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import LossFn
from experiments.flags.objectives import (
  ObjectiveSettings,
  augmentations_of,
  mask_ratio_of,
  parse_fusion,
  temperature_of,
)
from experiments.flags.pretraining import longest_sequence
from experiments.flags.shared import LEAVE_ONE_OUT
from experiments.pretraining.context import (
  BLOCK,
  Context,
  check_dropout,
  on_window,
  view_augmentations,
)

# Users whose negatives are compared at a time.
_BLOCK = 256


def make_masked_items(context: Context) -> LossFn:
  """Hidden items are guessed."""
  objective = functools.partial(
    masked_items_objective,
    ratio=mask_ratio_of(context.settings, 'masked_items'),
    **context.encoding,
  )
  return on_window(context, objective)


def make_causal_items(context: Context) -> LossFn:
  """Each next item is guessed."""
  settings = context.settings
  # The users that leave-one-out validates are those it trains on, with one item
  # more, which alone is new.
  last_only = settings.split == LEAVE_ONE_OUT and not context.is_training
  objective = functools.partial(
    causal_items_objective, last_only=last_only, **context.encoding
  )
  length = longest_sequence(settings, context.encoder.max_length)
  return on_window(context, objective, length=length)


def make_next_items(context: Context) -> LossFn:
  """The vector of a prefix predicts the items after it."""
  return functools.partial(
    next_items_objective,
    num_next=context.settings.num_next,
    **context.encoding,
  )


def make_pooled_items(context: Context) -> LossFn:
  """The vector of a slice predicts the items of another."""
  slices = view_augmentations(
    context.settings, context.encoder, ('slice',), has_second=False
  )
  return functools.partial(
    pooled_items_objective, augmentations=slices, **context.encoding
  )


def make_adaptssr(context: Context) -> LossFn:
  """Views are ranked."""
  return _ranking_views(
    context, {'adaptssr': _rank_views(context.settings)}, None
  )


def make_shared_views(context: Context, weights: dict[str, float]) -> LossFn:
  """Pooled items and AdaptSSR, of the same slices."""
  losses = {
    'pooled_items': functools.partial(predict_views, axis_name=AXIS),
    'adaptssr': _rank_views(context.settings),
  }
  return _ranking_views(context, losses, weights)


def _rank_views(settings: ObjectiveSettings) -> ViewsLoss:
  return functools.partial(
    rank_views,
    fusion=parse_fusion(settings.fusion),
    form=settings.loss_form,
    hard_negatives=settings.hard_negatives,
    temperature=temperature_of(settings, 'adaptssr'),
    smooth=settings.smooth,
    # All rankings of a small batch fit, and take less time at once.
    block_size=_BLOCK if settings.hard_negatives else 4 * _BLOCK,
    axis_name=AXIS,
  )


def _ranking_views(
  context: Context,
  losses: dict[str, ViewsLoss],
  weights: dict[str, float] | None,
) -> LossFn:
  """Losses of views that are ranked, and so encoded in two dropout passes."""
  names = augmentations_of(context.settings)
  objective = functools.partial(
    views_objective,
    losses=losses,
    weights=weights,
    encode=functools.partial(
      encode_views,
      encoder=context.encoder,
      augmentations=view_augmentations(
        context.settings, context.encoder, names, has_second=True
      ),
      # In validation too: dropout makes the implicit views.
      passes=2,
      buckets=context.buckets,
    ),
  )
  return objective if 'slice' in names else on_window(context, objective)


def make_ptum(context: Context) -> LossFn:
  """The user vector tells hidden and last behaviours from random ones."""
  objective = functools.partial(ptum_objective, **context.encoding)
  return on_window(context, objective)


def make_msdp(context: Context) -> LossFn:
  """The vector of a prefix predicts the shares of items in a window."""
  settings = context.settings
  return functools.partial(
    msdp_objective,
    max_window=settings.max_window,
    regularizer=settings.msdp_regularizer,
    ratio=mask_ratio_of(settings, 'msdp'),
    **context.encoding,
  )


def make_ecl(context: Context) -> LossFn:
  """The user vector tells which behaviours have been replaced."""
  settings = context.settings
  check_dropout(context, 'ecl')
  objective = functools.partial(
    ecl_objective,
    ratio=mask_ratio_of(settings, 'ecl'),
    contrast=settings.ecl_contrast,
    discriminator=settings.ecl_discriminator,
    temperature=temperature_of(settings, 'ecl'),
    block_size=BLOCK,
    **context.encoding,
  )
  return on_window(context, objective)
