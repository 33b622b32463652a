"""Pre-trains a user model on behaviours alone.

  python -m experiments.pretrain --flagfile=quickstart.flags

If it is started again with the same flags, it resumes where it stopped.
"""

from experiments.flags.pretraining import PretrainSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.pretrain', PretrainSettings)

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from adaptssr_jax.checkpoint.encoders import restore_description
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.data import UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.step import TrainState
from experiments.flags.binder import SettingsError
from experiments.flags.pretraining import (
  check_objective,
  longest_sequence,
  with_causal_encoder,
  with_defaults,
)
from experiments.flags.shared import LEAVE_ONE_OUT
from experiments.planning.plan import check_plan, plan_run, shapes_of
from experiments.planning.report import Plan
from experiments.pretraining.objectives import init_head
from experiments.pretraining.step import (
  batch_settings,
  encoded_of_a_user,
  item_shares,
  lengths_of,
  make_pretraining,
  with_partners_and_similar,
)
from experiments.pretraining.validation import (
  make_validation,
  open_probe,
  validate,
)
from experiments.run import loop
from experiments.run.data import open_data
from experiments.run.encoder import make_encoder, open_source, restored_head
from experiments.run.process import print_result_line
from experiments.run.speed import check_table_update
from experiments.run.trackers import find_trackers
from experiments.run.workdir import opened_workdir, write_dataset


def main(settings: PretrainSettings) -> TrainState | Plan:
  """Pre-trains, and returns the state with the best validation; or the plan."""
  settings = with_defaults(with_causal_encoder(settings))
  loop.check_devices(settings)
  find_trackers(settings)
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
  encoder, params = make_model(settings, items, data.splits['train'], init_key)
  data = with_partners_and_similar(settings, data, num_items=encoder.num_items)
  users = data.splits['train']
  length, _, buckets = lengths_of(settings, data, encoder)
  step, state = make_pretraining(
    settings, encoder, params, buckets, length=length, users=users
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
        step=make_validation(
          settings, encoder, buckets, length=length, users=users
        ),
        key=replicate(eval_key),
        probes={}
        if settings.select_by == 'loss'
        else {
          task: open_probe(settings, encoder, items, task=task)
          for task in settings.probe_task
        },
      ),
    ),
    state,
  )
  print_result_line(f'pre-trained: {folder}')
  return state


def make_model(
  settings: PretrainSettings,
  items: Sequence[str],
  users: UserArrays,
  key: jax.Array,
) -> tuple[UserEncoder, dict[str, Any]]:
  """The encoder, and the initial parameters of the model."""
  source = open_source(settings, settings.init_from)
  encoder, params = make_encoder(settings, items, key, source=source)
  head = init_head(settings, encoder, shares=item_shares(encoder, users))
  if source and head:
    head = {'head': restored_head(head['head'], items, source)}
  return encoder, params | head


def check_source(settings: PretrainSettings) -> None:
  """Raises `SettingsError` if --init_from does not fit this run.

  It does not fit if it was trained on items that this run holds out, or if
  `ccl_filled` would fill masked items by a model not trained to predict them.
  """
  source = settings.init_from
  flags = restore_description(source).flags if source else {}
  trained = {*str(flags.get('objective', '')).split(','), *settings.objective}
  if 'ccl_filled' in settings.objective and not trained & {
    'masked_items',
    'ecl',
  }:
    start = f'--init_from={source} was not trained to predict masked items; '
    raise SettingsError(
      f'{start if source else ""}--objective=ccl_filled fills masked items by '
      'a model that predicts them: start from a run of masked_items '
      '(--init_from), or give --objective=masked_items,ccl_filled'
    )
  if flags.get('split') == LEAVE_ONE_OUT != settings.split:
    raise SettingsError(
      f'--init_from={source} was trained with '
      '--split=leave_one_out, on items that are held out without this flag: '
      'give that flag too, or take a run without it'
    )


def plan(settings: PretrainSettings) -> Plan:
  """Computes what the run needs; writes no files except the prepared data."""
  check_plan(settings, source=settings.init_from)
  check_source(settings)
  data = open_data(settings, task='pretrain')
  encoder, params = shapes_of(
    functools.partial(
      make_encoder,
      settings,
      range(settings.plan_items) or data.vocabulary.items,
      source=open_source(settings, settings.init_from),
    ),
    jax.random.key(settings.seed),
  )
  data = with_partners_and_similar(settings, data, num_items=encoder.num_items)
  length, encoded, buckets = lengths_of(settings, data, encoder)
  head = jax.eval_shape(
    functools.partial(init_head, settings, encoder, shares=None)
  )
  make = functools.partial(
    make_pretraining,
    settings,
    encoder,
    buckets=buckets,
    length=length,
    users=data.splits['train'],
  )
  return plan_run(
    settings,
    data,
    data.splits['train'],
    *shapes_of(make, params | head),
    length=length,
    buckets=buckets,
    encoded=encoded,
    longest=min(length, longest_sequence(settings, encoder.max_length)),
    sequences=encoded_of_a_user(settings),
  )
