"""The steps of pre-training, which train and validate, and what they encode."""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import Encoding, last_behaviours
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import (
  LossFn,
  PmapStep,
  TrainState,
  pmap_step,
)
from experiments.flags.objectives import (
  ObjectiveSettings,
  augmentations_of,
  shares_views,
  slice_lengths_of,
  uses_histories,
)
from experiments.flags.pretraining import PretrainSettings, longest_sequence
from experiments.flags.traits import traits_of
from experiments.pretraining.collapse import collapse_warning, spread_of_users
from experiments.pretraining.context import (
  Context,
  drawn_of_a_user,
  make_drawing,
)
from experiments.pretraining.objectives import make_objective, sampled_of
from experiments.run import loop
from experiments.run.batches import batches_in_order, steps_of_run
from experiments.run.process import print_line
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
  """The lengths that a step works with.

  Returns:
    The length of the sequences in a batch; the lengths of the sequences that
    are encoded, int [sequences], for a sample of users; and the buckets chosen
    for these.
  """
  longest = longest_sequence(settings, encoder.max_length)
  if uses_histories(settings):
    longest = sys.maxsize
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
  context = Context(settings, users, Encoding(encoder, buckets, axis_name=AXIS))
  return make_training(
    settings,
    encoder,
    params,
    make_objective(context),
    loop.make_optimizer(
      settings, loop.learning_rate(settings, steps_of_run(settings, users))
    ),
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
  encoding = Encoding(encoder, buckets, deterministic=True, axis_name=AXIS)
  context = Context(settings, users, encoding)
  step = functools.partial(
    validation_step, loss_fn=make_objective(context), encoding=encoding
  )
  length += drawn_of_a_user(context)
  step = on_table(settings, step, encoder, length=length)
  draw = make_drawing(context)

  def on_drawn(
    params: dict[str, Any], batch: dict[str, Any], key: jax.Array
  ) -> tuple[dict[str, Any], jax.Array]:
    return step(params, draw(batch, key), key)

  return pmap_step(on_drawn if draw else step, num_replicated_args=1)


def validation_step(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  loss_fn: LossFn,
  encoding: Encoding,
) -> tuple[dict[str, Any], jax.Array]:
  """The sums of the metrics of a batch, by the same draws every time.

  And the vectors of its users, without dropout.
  """
  _, metrics = loss_fn(params, batch, key)
  length = encoding.encoder.max_length
  items = last_behaviours(batch['items'], length=length)
  users = encoding.all_users(params, {'items': items})
  return jax.lax.psum(metrics, AXIS), users


def validate(
  state: TrainState,
  *,
  users: UserArrays,
  length: int,
  settings: PretrainSettings,
  step: Callable,
  key: jax.Array,
  probes: Mapping[str, Callable[[dict[str, Any]], float]],
) -> tuple[dict[str, float], float | None]:
  """The metrics on the validation users, and the score that selects an epoch.

  Negatives of a user are the others of its validation batch. The score is the
  negative loss, or the mean score of the probes; None, with a warning, for a
  collapsed state, whose loss may be the lowest of all.
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
  vectors = np.concatenate(vectors)
  values |= spread_of_users(vectors)
  goodness = -values['loss']
  if probes:
    found = {task: score(state.params) for task, score in probes.items()}
    values |= {f'probe_{task}': value for task, value in found.items()}
    goodness = values['probe'] = statistics.fmean(found.values())
  warning = collapse_warning(
    values, objective=settings.objective, largest_rank=min(vectors.shape)
  )
  if warning:
    print_line(f'WARNING at step {int(state.step):,}: {warning}')
  named = {f'validation_{name}': value for name, value in values.items()}
  return named, None if warning else goodness


def batch_settings(settings: PretrainSettings) -> PretrainSettings:
  """The settings by which batches are made.

  Where batches hold whole histories, the objective draws the runs of them.
  """
  if uses_histories(settings):
    return dataclasses.replace(settings, window='last')
  return settings


def encoded_of_a_user(settings: ObjectiveSettings) -> int:
  """How many sequences are encoded of each user in a step."""
  total = 0
  for name in settings.objective:
    if name == 'pooled_items' and shares_views(settings):
      # It has a pass of AdaptSSR, which sees the same views.
      continue
    traits = traits_of(name)
    total += (traits.views or settings.num_slices) * traits.passes
  return total


def encoded_lengths(
  settings: ObjectiveSettings, lengths: np.ndarray, *, max_length: int
) -> np.ndarray:
  """The lengths of the sequences that a step encodes of users of these lengths.

  Edits other than crop are taken to change no length.
  """
  low, high = slice_lengths_of(settings, max_length)
  # Slices of all lengths that are drawn, as far as there are behaviours.
  drawn = np.linspace(low, high, 16).astype(int)
  slices = np.minimum(lengths[:, None], drawn).reshape(-1)
  recent = np.minimum(lengths, max_length)
  found = []
  for objective in settings.objective:
    traits = traits_of(objective)
    views = traits.edits
    if traits.is_augmented:
      # Those of all views of a user, each as often as it is drawn.
      views = augmentations_of(settings, objective)
      second = settings.second_augmentations or views
      views += second * (settings.num_slices - 1)
    seen = slices if traits.is_sliced or 'slice' in views else recent
    found += [
      np.ceil(settings.crop_ratio * seen) if name == 'crop' else seen
      for name in views or ('',)
    ]
  return np.concatenate(found).astype(int)
