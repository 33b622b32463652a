r"""Fine-tunes a user model on a task, and tests it once.

  python -m experiments.finetune --task=age --pretrained=runs/latest \
    --workdir=runs/age

It starts from the encoder of the run in --pretrained; without that flag it
starts from a random encoder.
"""

from experiments.flags.finetuning import FinetuneSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.finetune', FinetuneSettings)

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.data import UserData
from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.step import TrainState
from experiments.finetuning.data import event_of, examples_of, open_task
from experiments.finetuning.predictions import (
  make_predict,
  validate,
  write_result,
)
from experiments.finetuning.step import make_finetuning
from experiments.finetuning.tasks import KINDS, make_model, select_by
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import with_defaults
from experiments.planning.plan import Plan, check_plan, plan_run
from experiments.probing.probe import probe, probe_head, probe_name
from experiments.run import loop
from experiments.run.encoder import make_encoder, open_source
from experiments.run.process import print_result_line
from experiments.run.steps import Training, sequences_of
from experiments.run.workdir import (
  RESULT,
  opened_workdir,
  refuse_other_run,
  write_dataset,
)

_TESTED = ('validation', 'test')


def main(settings: FinetuneSettings) -> dict[str, Any] | Plan:
  """Fine-tunes, and returns the content of `result.json`, or the plan."""
  settings = with_defaults(settings)
  loop.check_run(settings)
  if settings.plan:
    return plan(settings)
  # Before the task, which may take long to prepare.
  refuse_other_run(settings)
  is_finished = pathlib.Path(settings.workdir, RESULT).exists()
  # Before the folder is made, since the task may be refused.
  data = None if is_finished else open_task(settings)
  with opened_workdir(settings, data.name if data else None) as folder:
    return finetune_in(folder, settings, data)


def finetune_in(
  folder: pathlib.Path, settings: FinetuneSettings, data: UserData | None
) -> dict[str, Any]:
  """Fine-tunes in an open folder, unless it has a result."""
  if data is None or (folder / RESULT).exists():
    print_result_line(f'{folder}: finished, see {RESULT}')
    return json.loads((folder / RESULT).read_text())
  write_dataset(folder, data)
  event = event_of(settings, data)
  model_key, train_key = jax.random.split(jax.random.key(settings.seed))
  model, params = make_model(settings, data, model_key)
  if settings.mode == 'probe':
    models = [(model['encoder'], params)]
    models += [
      make_encoder(
        settings,
        data.vocabulary.items,
        model_key,
        source=open_source(path, shard_table=settings.shard_table),
        shard_table=settings.shard_table,
      )
      for path in settings.concatenate
    ]
    best, outputs = probe(settings, folder, data, models)
  elif settings.mode == 'zero_shot':
    best, outputs = zero_shot(settings, data, model, params)
  else:
    if settings.head == 'probe':
      params['head'] = probe_head(settings, data, (model['encoder'], params))
    best, outputs = tune(settings, folder, data, model, params, train_key)
  about = {'task': settings.task, 'pretrained': settings.pretrained}
  if settings.concatenate:
    about['concatenate'] = list(settings.concatenate)
  if settings.mode == 'probe':
    about['history'] = settings.history
  result = write_result(folder, about | event | best, outputs, data)
  print_result(result, settings)
  return result


def plan(settings: FinetuneSettings) -> Plan:
  """Plans the run, without training; writes nothing but the prepared data."""
  if settings.mode in ('probe', 'zero_shot'):
    raise SettingsError(
      f'--plan is about training steps, and --mode={settings.mode} has none: '
      'leave out either'
    )
  check_plan(settings, source=settings.pretrained)
  data = open_task(settings)
  return plan_run(settings, data, functools.partial(make_run, settings))


def make_run(
  settings: FinetuneSettings, data: UserData, key: jax.Array
) -> tuple[Training, TrainState]:
  """The run that `tune` trains, and its initial state."""
  model, params = make_model(settings, data, key)
  return make_finetuning(settings, data, model, params)


def tune(
  settings: FinetuneSettings,
  folder: pathlib.Path,
  data: UserData,
  model: dict[str, Any],
  params: dict[str, Any],
  key: jax.Array,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Trains, and returns the best step and its outputs.

  The outputs are those for the validation and the test rows.
  """
  kind = KINDS[data.kind]
  training, state = make_finetuning(settings, data, model, params)
  predict = make_predict(settings, kind, model, training.sequences)
  best = loop.train(
    loop.Run(
      settings=settings,
      folder=folder,
      training=training,
      key=key,
      description=describe(
        training.encoder,
        data.vocabulary.items,
        settings.flag_values(),
        data.vocabulary.labels,
      ),
      on_epoch=functools.partial(
        validate,
        users=training.splits['validation'],
        predict=predict,
        kind=kind,
        metric=select_by(settings, data),
      ),
      score_start=settings.head == 'probe',
    ),
    state,
  )
  return {'best_step': int(best.step)}, {
    name: predict(best.params, users=training.splits[name]) for name in _TESTED
  }


def zero_shot(
  settings: FinetuneSettings,
  data: UserData,
  model: dict[str, Any],
  params: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the same as `tune`, without training."""
  splits = examples_of(settings, data).splits
  sequences = sequences_of(
    settings, splits.values(), model['encoder'].max_length
  )
  predict = make_predict(settings, KINDS[data.kind], model, sequences)
  params = replicate(params)
  return {'best_step': 0}, {
    name: predict(params, users=splits[name]) for name in _TESTED
  }


def print_result(result: dict[str, Any], settings: FinetuneSettings) -> None:
  """Prints the metrics of the best epoch, one line for each split."""
  start = result['pretrained'] or 'a random start'
  start = ' and '.join([start, *result.get('concatenate', ())])
  best = f'step {result["best_step"]:,}'
  if settings.mode == 'probe':
    best = probe_name(result)
  print_result_line(f'{result["task"]} from {start}, {best}:')
  for split in _TESTED:
    values = ', '.join(
      f'{name} {"none" if value is None else format(value, ".4f")}'
      for name, value in result[split].items()
    )
    print_result_line(f'  {split:<10}  {values}')
