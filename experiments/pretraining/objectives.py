"""From the flags of pre-training to its objective."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.ecl import init_discriminator
from adaptssr_jax.objectives.masked_items import init_masked_items
from adaptssr_jax.objectives.msdp import init_msdp
from adaptssr_jax.objectives.pooled_items import init_projection
from adaptssr_jax.objectives.views import sum_objective
from adaptssr_jax.training.step import LossFn
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import (
  OF_VIEWS,
  ObjectiveSettings,
  parse_weights,
  shares_views,
)
from experiments.flags.pretraining import PretrainSettings
from experiments.flags.traits import traits_of
from experiments.pretraining import contrastive, makers
from experiments.pretraining.context import Context, on_window

MAKERS = {
  'adaptssr': makers.make_adaptssr,
  'masked_items': makers.make_masked_items,
  'causal_items': makers.make_causal_items,
  'pooled_items': makers.make_pooled_items,
  'next_items': makers.make_next_items,
  'clue': contrastive.make_clue,
  'cl4srec': contrastive.make_cl4srec,
  'idicl': contrastive.make_idicl,
  'ccl': contrastive.make_ccl,
  'ccl_filled': contrastive.make_ccl_filled,
  'coles': contrastive.make_coles,
  'ptum': makers.make_ptum,
  'msdp': makers.make_msdp,
  'ecl': makers.make_ecl,
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
    made['_and_'.join(OF_VIEWS)] = makers.make_shared_views(context, weights)
  for name in names:
    if name in MAKERS:
      made[name] = MAKERS[name](context)
    else:
      own = functools.partial(_own(name), **context.encoding)
      made[name] = on_window(context, own)
  if len(made) == 1:
    (only,) = made.values()
    return only
  return functools.partial(sum_objective, objectives=made, weights=weights)


def sampled_of(settings: ObjectiveSettings) -> int:
  """How many items of a training step estimate a softmax; 0: it is exact."""
  uses_softmax = any(
    traits_of(name).over_all_items for name in settings.objective
  )
  return settings.sampled_items if uses_softmax else 0


def init_head(
  settings: PretrainSettings,
  encoder: UserEncoder,
  *,
  shares: np.ndarray | None,
) -> dict[str, Any]:
  """The parameters of the objectives that the encoder lacks.

  Args:
    shares: of `item_shares`, at whose log the bias of each id starts; None
      starts it at zero.
  """
  head = {}
  traits = [traits_of(name) for name in settings.objective]
  if any(of.has_bias for of in traits):
    head |= init_masked_items(encoder)
    if shares is not None and settings.output_bias == 'shares':
      head['bias'] = jnp.asarray(np.log(shares), jnp.float32)
  if any(of.from_the_vector for of in traits):
    head |= init_projection(encoder)
  if 'msdp' in settings.objective:
    head |= init_msdp(encoder, max_window=settings.max_window)
  if 'ecl' in settings.objective:
    # The run splits the key of its seed in three.
    key = jax.random.fold_in(jax.random.key(settings.seed), 3)
    head |= init_discriminator(encoder, key)
  for name in settings.objective:
    if ':' in name:
      init = getattr(_own(name), 'init_head', None)
      head |= init(encoder) if init else {}
  return {'head': head} if head else {}


def _own(name: str) -> Callable:
  """The function MODULE:FUNCTION."""
  module, _, function = name.partition(':')
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise SettingsError(
      f'--objective={name}: {error}; give MODULE:FUNCTION of a module that '
      'Python can import from here'
    ) from error
