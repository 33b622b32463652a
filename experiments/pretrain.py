"""Pre-trains a user model on behaviours alone.

  python -m experiments.pretrain --flagfile=experiments/configs/quickstart.flags

Started again with the same flags, it goes on where it stopped.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.buckets import Buckets
from adaptssr_jax.checkpoint import restore_description
from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.description import describe
from adaptssr_jax.devices import AXIS, replicate
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.users import encode_users, last_behaviours
from adaptssr_jax.train import LossFn, TrainState, pmap_step, sum_metrics
from experiments import loop
from experiments.causal_items import longest_sequence, with_causal_encoder
from experiments.collapse import collapse_warning, spread_of_users
from experiments.datasets import open_data
from experiments.encoded_views import encoded_lengths, encoded_of_a_user
from experiments.encoders import make_encoder, restored_head
from experiments.objective_settings import (
  ObjectiveSettings,
  check_objective,
  uses_histories,
)
from experiments.objectives import (
  init_head,
  item_shares,
  make_objective,
)
from experiments.plan import check_plan, plan_run, planned_items, shapes_of
from experiments.planning.report import Plan
from experiments.probe_epochs import EpochProbe, open_probe
from experiments.process import tell
from experiments.settings import SettingsError, flag, run
from experiments.shared_settings import (
  LEAVE_ONE_OUT,
  EncoderSettings,
  PlanSettings,
)
from experiments.speed import (
  check_table_update,
  length_seen,
  make_buckets,
  make_training,
  on_table,
  sample_lengths,
)
from experiments.workdir import opened_workdir, write_dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(PlanSettings, EncoderSettings, ObjectiveSettings):
  """The flags of pre-training."""

  init_from: str = flag(
    '', 'Workdir of a run whose encoder to start from; else at random.'
  )
  select_by: str = flag(
    'loss',
    'What chooses the best epoch: the validation loss, or the accuracy of a '
    'logistic regression (the AUC, of a conversion) on the vectors of the '
    'users of --probe_task.',
    choices=('loss', 'probe'),
  )
  probe_task: str = flag(
    'gender',
    '--select_by=probe: the task whose training and validation rows judge the '
    'vectors. Its test rows are not looked at, which is so for the stored '
    'split alone, not for another --split_seed of fine-tuning.',
  )


# The item table starts wider where the user vector predicts items: at 0.02 its
# scores are so close to each other that training stands still for epochs.
_ITEM_STDDEV = 0.06
_FROM_THE_VECTOR = ('pooled_items', 'next_items')


def with_defaults(settings: PretrainSettings) -> PretrainSettings:
  """The settings with the flags that the objective decides, unless given."""
  predicts = set(settings.objective) & set(_FROM_THE_VECTOR)
  if settings.item_stddev is None and predicts:
    return dataclasses.replace(settings, item_stddev=_ITEM_STDDEV)
  return settings


def main(settings: PretrainSettings) -> TrainState | Plan:
  """Pre-trains, and returns the state that validates best; or the plan."""
  settings = with_defaults(with_causal_encoder(settings))
  loop.check_devices(settings)
  check_table_update(settings)
  check_objective(settings)
  if settings.plan:
    return plan(settings)
  with opened_workdir(settings) as folder:
    return pretrain_in(folder, settings)


def pretrain_in(folder: pathlib.Path, settings: PretrainSettings) -> TrainState:
  """Pre-trains in an open folder."""
  check_source(settings)
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
  length, _, buckets = lengths_of(settings, data, encoder)
  head = init_head(settings, encoder, shares=item_shares(encoder, users))
  if settings.init_from and head:
    learned = restored_head(head['head'], items, source=settings.init_from)
    head = {'head': learned}
  step, state = make_pretraining(
    settings, encoder, {'encoder': params} | head, buckets, length=length
  )
  state = loop.train(
    loop.Run(
      settings=batch_settings(settings),
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
          on_table(
            settings,
            functools.partial(make_validation, settings, buckets),
            encoder,
            length=length,
          ),
          whole=1,
        ),
        key=replicate(eval_key),
        probe=probe_of(settings, encoder, items),
      ),
    ),
    state,
  )
  tell(f'pre-trained: {folder}')
  return state


def batch_settings(settings: PretrainSettings) -> PretrainSettings:
  """The settings by which batches are made.

  A random run of a history is drawn by the objective where batches hold
  histories, of which --max_history keeps the last behaviours.
  """
  if uses_histories(settings):
    return dataclasses.replace(settings, window='last')
  return settings


def probe_of(
  settings: PretrainSettings, encoder: UserEncoder, items: Sequence[str]
) -> EpochProbe | None:
  """What chooses the epoch, if it is not the loss."""
  if settings.select_by == 'loss':
    return None
  return open_probe(settings, encoder, items, task=settings.probe_task)


def check_source(settings: PretrainSettings) -> None:
  """Raises `SettingsError` where the source has seen what is held out here."""
  if not settings.init_from:
    return
  flags = restore_description(settings.init_from).flags
  if flags.get('split') == LEAVE_ONE_OUT != settings.split:
    raise SettingsError(
      f'--init_from={settings.init_from} was trained with '
      '--split=leave_one_out, and has seen films that are held out otherwise: '
      'give that flag too, or take a run without it'
    )


def plan(settings: PretrainSettings) -> Plan:
  """Tells what the run needs, and writes nothing but the data."""
  check_plan(settings, source=settings.init_from)
  data = open_data(settings, task='pretrain')
  encoder, params = shapes_of(
    functools.partial(
      make_encoder,
      settings,
      planned_items(settings, data),
      source=settings.init_from,
    ),
    jax.random.key(settings.seed),
  )
  length, encoded, buckets = lengths_of(settings, data, encoder)
  head = jax.eval_shape(
    functools.partial(init_head, settings, encoder, shares=None)
  )
  make = functools.partial(
    make_pretraining, settings, encoder, buckets=buckets, length=length
  )
  return plan_run(
    settings,
    data,
    data.splits['train'],
    *shapes_of(make, {'encoder': params} | head),
    length=length,
    buckets=buckets,
    encoded=encoded,
    longest=min(length, longest_sequence(settings, encoder.max_length)),
    sequences=encoded_of_a_user(settings),
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
  length = length_seen(data.splits.values(), longest)
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
) -> tuple[Callable, TrainState]:
  """The step of a run, before `pmap_step`, and the state it begins with."""
  return make_training(
    settings,
    encoder,
    params,
    functools.partial(training_loss, settings, buckets),
    loop.make_optimizer(settings),
    length=length,
  )


def training_loss(
  settings: PretrainSettings, buckets: Buckets, encoder: UserEncoder
) -> LossFn:
  """The loss to train on, of the encoder or of a smaller one."""
  return make_objective(settings, encoder, buckets)[0]


def make_validation(
  settings: PretrainSettings, buckets: Buckets, encoder: UserEncoder
) -> Callable:
  """`validation_step`, of the encoder or of a smaller one."""
  return functools.partial(
    validation_step,
    loss_fn=make_objective(settings, encoder, buckets)[1],
    encoder=encoder,
    buckets=buckets,
  )


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
  for batch, rows in loop.batches_in_order(users, settings, length):
    sums, encoded = step(state.params, batch, key)
    totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    vectors.append(np.asarray(encoded)[: len(rows)])
  values = {
    name: float(total / jnp.maximum(count, 1))
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


if __name__ == '__main__':
  run(main, PretrainSettings)
