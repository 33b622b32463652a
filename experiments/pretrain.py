"""Pre-trains a user model on behaviours alone.

  python -m experiments.pretrain --flagfile=experiments/configs/quickstart.flags

Started again with the same flags, it goes on where it stopped.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.buckets import Buckets
from adaptssr_jax.data import UserArrays
from adaptssr_jax.description import describe
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.users import encode_users
from adaptssr_jax.train import (
  AXIS,
  LossFn,
  TrainState,
  pmap_step,
  replicate,
  sum_metrics,
)
from experiments import loop
from experiments.collapse import collapse_warning, spread_of_users
from experiments.datasets import open_data
from experiments.encoders import make_encoder
from experiments.objectives import (
  ObjectiveSettings,
  encoded_lengths,
  init_head,
  make_objective,
)
from experiments.settings import flag, run
from experiments.shared_settings import EncoderSettings, RunSettings
from experiments.speed import (
  check_table_update,
  length_seen,
  make_buckets,
  make_training,
  sample_lengths,
)
from experiments.workdir import open_workdir, write_dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings, EncoderSettings, ObjectiveSettings):
  """The flags of pre-training."""

  init_from: str = flag(
    '', 'Workdir of a run whose encoder to start from; else at random.'
  )


def main(settings: PretrainSettings) -> TrainState:
  """Pre-trains, and returns the state that validates best."""
  loop.check_devices(settings)
  check_table_update(settings)
  folder = open_workdir(settings)
  data = open_data(settings, task='pretrain')
  items = data.vocabulary.items
  write_dataset(folder, data)

  init_key, train_key, eval_key = jax.random.split(
    jax.random.key(settings.seed), 3
  )
  encoder, params = make_encoder(
    settings, items, init_key, source=settings.init_from
  )
  users = data.splits['train']
  length = length_seen(data.splits.values(), encoder.max_length)
  lengths = encoded_lengths(settings, sample_lengths(users, length))
  buckets = make_buckets(settings, lengths)
  step, state = make_pretraining(
    settings, encoder, params, buckets, length=length
  )
  state = loop.train(
    loop.Run(
      settings=settings,
      folder=folder,
      users=users,
      length=length,
      step=step,
      key=train_key,
      description=describe(encoder, items, settings.flag_values()),
      on_epoch=functools.partial(
        validate,
        users=data.splits['validation'],
        length=length,
        settings=settings,
        step=pmap_step(
          functools.partial(
            validation_step,
            loss_fn=make_objective(settings, encoder, buckets)[1],
            encoder=encoder,
            buckets=buckets,
          ),
          whole=1,
        ),
        key=replicate(eval_key),
      ),
    ),
    state,
  )
  print(f'pre-trained: {folder}', flush=True)
  return state


def make_pretraining(
  settings: PretrainSettings,
  encoder: UserEncoder,
  params: dict[str, Any],
  buckets: Buckets,
  *,
  length: int,
) -> tuple[Callable, TrainState]:
  """The step of a run, before `pmap_step`, and the state it begins with."""
  return make_training(
    settings,
    encoder,
    {'encoder': params} | init_head(settings, encoder),
    functools.partial(training_loss, settings, buckets),
    loop.make_optimizer(settings),
    length=length,
  )


def training_loss(
  settings: PretrainSettings, buckets: Buckets, encoder: UserEncoder
) -> LossFn:
  """The loss to train on, of the encoder or of a smaller one."""
  return make_objective(settings, encoder, buckets)[0]


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
  users = encode_users(
    params, batch, encoder=encoder, buckets=buckets, axis_name=AXIS
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
) -> tuple[dict[str, float], float | None]:
  """The metrics on the validation users, who are ranked within their batch.

  And the score of the state, minus the loss. A state that has collapsed has
  none, since its loss may be the lowest of all; it is warned of.
  """
  totals, vectors = None, []
  for batch in loop.batches_in_order(users, settings, length):
    sums, encoded = step(state.params, batch, key)
    totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    vectors.append(np.asarray(encoded)[batch['where'].reshape(-1)])
  values = {
    name: float(total / jnp.maximum(count, 1))
    for name, (total, count) in totals.items()
  }
  values |= spread_of_users(np.concatenate(vectors))
  warning = collapse_warning(values, objective=settings.objective)
  if warning:
    print(f'WARNING at step {int(state.step):,}: {warning}', flush=True)
  named = {f'validation_{name}': value for name, value in values.items()}
  return named, None if warning else -values['loss']


if __name__ == '__main__':
  run(main, PretrainSettings)
