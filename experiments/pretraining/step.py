"""The steps of pre-training: one that trains, and one that validates."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import encode_users, last_behaviours
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import (
  LossFn,
  PmapStep,
  PrepareFn,
  TrainState,
  pmap_step,
  sum_metrics,
)
from experiments.flags.objectives import uses_histories
from experiments.flags.pretraining import PretrainSettings, longest_sequence
from experiments.pretraining.collapse import collapse_warning, spread_of_users
from experiments.pretraining.context import Context
from experiments.pretraining.encoded_views import encoded_lengths
from experiments.pretraining.item_rivals import drawn_of_a_user, make_drawing
from experiments.pretraining.objectives import make_objective, sampled_of
from experiments.pretraining.probe_epochs import EpochProbe
from experiments.run import loop
from experiments.run.batches import batches_in_order
from experiments.run.process import tell
from experiments.run.speed import (
  effective_length,
  make_buckets,
  make_training,
  on_table,
  sample_lengths,
)


def lengths_of(
  settings: PretrainSettings, data: UserData, encoder: UserEncoder
) -> tuple[int, np.ndarray, Buckets]:
  """How long batches are, and the sequences made of them, and in which parts.

  The sequences are those of a sample.
  """
  longest = longest_sequence(settings, encoder.max_length)
  if uses_histories(settings):
    longest = settings.max_history or sys.maxsize
  length = effective_length(data.splits.values(), longest)
  seen = sample_lengths(data.splits['train'], length)
  encoded = encoded_lengths(settings, seen, max_length=encoder.max_length)
  return length, encoded, make_buckets(settings, encoded)


def make_pretraining(
  settings: PretrainSettings,
  encoder: UserEncoder,
  params: dict[str, Any],
  buckets: Buckets,
  *,
  length: int,
  users: UserArrays,
) -> tuple[Callable, TrainState]:
  """The step of a run, before `pmap_step`, and the state it begins with."""
  context = Context(settings, encoder, buckets, True, users)
  return make_training(
    settings,
    encoder,
    params,
    make_objective(context),
    loop.make_optimizer(settings),
    length=length + drawn_of_a_user(context),
    sampled_items=sampled_of(settings),
    draw=make_drawing(context),
  )


def make_validation(
  settings: PretrainSettings,
  encoder: UserEncoder,
  buckets: Buckets,
  *,
  length: int,
  users: UserArrays,
) -> PmapStep:
  """`validation_step` on all devices."""
  context = Context(settings, encoder, buckets, False, users)
  step = functools.partial(
    validation_step,
    loss_fn=make_objective(context),
    encoder=encoder,
    buckets=buckets,
  )
  length += drawn_of_a_user(context)
  step = on_table(settings, step, encoder, length=length)
  draw = make_drawing(context)
  if draw:
    step = functools.partial(_with_draws, step, draw)
  return pmap_step(step, num_replicated_args=1)


def _with_draws(
  step: Callable,
  draw: PrepareFn,
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
) -> tuple[dict[str, Any], jax.Array]:
  """A step of the batch and of what is drawn for it."""
  return step(params, draw(batch, key), key)


def validation_step(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  loss_fn: LossFn,
  encoder: UserEncoder,
  buckets: Buckets,
) -> tuple[dict[str, Any], jax.Array]:
  """The sums of the metrics of a batch, by the same draws every time.

  And the vectors of its users, without dropout.
  """
  _, metrics = loss_fn(params, batch, key)
  items = last_behaviours(batch['items'], length=encoder.max_length)
  users = encode_users(
    params,
    batch | {'items': items},
    encoder=encoder,
    buckets=buckets,
    axis_name=AXIS,
  )
  return sum_metrics(metrics, axis_name=AXIS), users


def validate(
  state: TrainState,
  *,
  users: UserArrays,
  length: int,
  settings: PretrainSettings,
  step: Callable,
  key: jax.Array,
  probe: EpochProbe | None = None,
) -> tuple[dict[str, float], float | None]:
  """The metrics on the validation users, who are ranked within their batch.

  And the score of the state, minus the loss or the accuracy of the probe. A
  state that has collapsed has none, since its loss may be the lowest of all; it
  is warned of.
  """
  totals, vectors = None, []
  for batch, rows in batches_in_order(users, settings, length):
    sums, encoded = step(state.params, batch, key)
    sums = jax.device_get(sums)
    totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    vectors.append(np.asarray(encoded)[: len(rows)])
  values = {
    name: float(np.float32(total) / np.float32(max(count, 1)))
    for name, (total, count) in totals.items()
  }
  values |= spread_of_users(np.concatenate(vectors))
  score = -values['loss']
  if probe:
    score = values['probe'] = probe.score(state.params)
  warning = collapse_warning(values, objective=settings.objective)
  if warning:
    tell(f'WARNING at step {int(state.step):,}: {warning}')
  named = {f'validation_{name}': value for name, value in values.items()}
  return named, None if warning else score


def batch_settings(settings: PretrainSettings) -> PretrainSettings:
  """The settings by which batches are made.

  A random run of a history is drawn by the objective where batches hold
  histories, of which --max_history keeps the last behaviours.
  """
  if uses_histories(settings):
    return dataclasses.replace(settings, window='last')
  return settings
