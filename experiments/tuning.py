"""The training step of fine-tuning."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from adaptssr_jax.buckets import Buckets
from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.ranking import softmax_ranking_objective
from adaptssr_jax.train import LossFn, TrainState
from experiments import loop
from experiments.finetune_settings import FinetuneSettings
from experiments.speed import (
  length_seen,
  make_buckets,
  make_training,
  sample_lengths,
)
from experiments.tasks import KINDS


def lengths_of(
  settings: FinetuneSettings,
  examples: dict[str, UserArrays],
  encoder: UserEncoder,
) -> tuple[int, np.ndarray, Buckets]:
  """How long batches are, and users of a sample, and how they are encoded."""
  length = length_seen(examples.values(), encoder.max_length)
  seen = sample_lengths(examples['train'], length)
  return length, seen, make_buckets(settings, seen)


def make_finetuning(
  settings: FinetuneSettings,
  data: UserData,
  model: dict[str, Any],
  params: dict[str, Any],
  *,
  buckets: Buckets,
  length: int,
) -> tuple[Callable, TrainState]:
  """The step of a run, before `pmap_step`, and the state it begins with."""
  return make_training(
    settings,
    model['encoder'],
    params,
    functools.partial(
      training_loss, settings, data, model | {'buckets': buckets}
    ),
    make_optimizer(settings),
    length=length,
  )


def training_loss(
  settings: FinetuneSettings,
  data: UserData,
  model: dict[str, Any],
  encoder: UserEncoder,
) -> LossFn:
  """The objective of the task, of the encoder or of a smaller one."""
  objective = KINDS[data.kind].objective
  if data.kind == 'ranking' and settings.ranking_loss == 'softmax':
    objective = softmax_ranking_objective
  loss_fn = functools.partial(objective, **model | {'encoder': encoder})
  if data.kind == 'conversion':
    loss_fn = functools.partial(
      loss_fn, positive_weight=settings.positive_weight
    )
  if settings.mode == 'frozen':
    loss_fn = functools.partial(frozen_loss, loss_fn=loss_fn)
  return loss_fn


def frozen_loss(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  loss_fn: LossFn,
) -> tuple[jax.Array, dict[str, Any]]:
  """A loss whose gradient is not traced back into the encoder."""
  encoder = jax.lax.stop_gradient(params['encoder'])
  return loss_fn(params | {'encoder': encoder}, batch, key)


def make_optimizer(settings: FinetuneSettings) -> optax.GradientTransformation:
  """The optimizer of the flags, of the head alone if the encoder is frozen."""
  optimizer = loop.make_optimizer(settings)
  if settings.mode != 'frozen':
    return optimizer
  # Weight decay would move even what has no gradient.
  return optax.multi_transform(
    {'trained': optimizer, 'frozen': optax.set_to_zero()},
    {'encoder': 'frozen', 'head': 'trained'},
  )
