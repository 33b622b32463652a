"""How the flags make the rivals that predict items."""

import functools

from adaptssr_jax.objectives.ecl import ecl_objective
from adaptssr_jax.objectives.msdp import msdp_objective
from adaptssr_jax.objectives.ptum import draw_negatives, ptum_objective
from adaptssr_jax.training.step import LossFn, PrepareFn
from experiments.flags.objectives import mask_ratio_of, temperature_of
from experiments.flags.traits import traits_of
from experiments.pretraining.context import (
  BLOCK,
  Context,
  check_dropout,
  on_window,
)
from experiments.pretraining.item_counts import ends_of_items


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
  """Which behaviours have been replaced is told by the user vector."""
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


def drawn_of_a_user(context: Context) -> int:
  """How many items a step draws for each user."""
  return sum(traits_of(name).draws for name in context.settings.objective)


def make_drawing(context: Context) -> PrepareFn | None:
  """(batch, key) -> the batch with the items drawn for it, if any are."""
  if not drawn_of_a_user(context):
    return None
  ends = ends_of_items(context.encoder, context.users)
  return functools.partial(draw_negatives, ends=ends)
