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

import jax

from adaptssr_jax.checkpoint.encoders import restore_description
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.data import UserBuilder
from adaptssr_jax.training.step import TrainState
from experiments.flags.binder import SettingsError
from experiments.flags.pretraining import check_objective, with_defaults
from experiments.flags.shared import LEAVE_ONE_OUT
from experiments.planning.plan import Plan, check_plan, plan_run
from experiments.pretraining.step import make_pretraining
from experiments.pretraining.validation import make_validation
from experiments.run import loop
from experiments.run.data import check_data, open_data
from experiments.run.process import print_result_line
from experiments.run.workdir import opened_workdir, write_dataset


def main(settings: PretrainSettings) -> TrainState | Plan:
  """Pre-trains, and returns the state with the best validation; or the plan."""
  settings = with_defaults(settings)
  builder = check(settings)
  if settings.plan:
    data = open_data(settings, 'pretrain', builder)
    make = functools.partial(make_pretraining, settings)
    return plan_run(settings, data, make)
  with opened_workdir(settings, builder.info.full_name) as folder:
    return pretrain_in(folder, settings, builder)


def pretrain_in(
  folder: pathlib.Path, settings: PretrainSettings, builder: UserBuilder
) -> TrainState:
  """Pre-trains in an open folder."""
  data = open_data(settings, 'pretrain', builder)
  items = data.vocabulary.items
  write_dataset(folder, data)
  init_key, train_key, eval_key = jax.random.split(
    jax.random.key(settings.seed), 3
  )
  training, state = make_pretraining(settings, data, init_key)
  state = loop.train(
    loop.Run(
      settings=settings,
      folder=folder,
      training=training,
      key=train_key,
      description=describe(training.encoder, items, settings.flag_values()),
      on_epoch=make_validation(settings, training, items=items, key=eval_key),
    ),
    state,
  )
  print_result_line(f'pre-trained: {folder}')
  return state


def check(settings: PretrainSettings) -> UserBuilder:
  """Raises `SettingsError` for flags with which the run would fail.

  Returns:
    The builder of the data, whose files are hashed only once.
  """
  loop.check_run(settings)
  check_objective(settings)
  builder = check_data(settings, 'pretrain')
  if settings.plan:
    check_plan(settings, source=settings.init_from)
  check_source(settings)
  return builder


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
