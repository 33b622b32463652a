"""Fine-tunes a user model on a task, and tests it once.

  python -m experiments.finetune --task=age --pretrained=runs/latest

With --pretrained=DIR it starts from the encoder of that run, else at random.
"""

import functools
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserArrays, UserData, resplit
from adaptssr_jax.description import describe
from adaptssr_jax.devices import replicate
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.train import TrainState, pmap_step
from experiments import loop
from experiments.datasets import check_split_seed, open_data
from experiments.finetune_settings import FinetuneSettings, with_defaults
from experiments.plan import check_plan, plan_run, planned_items, shapes_of
from experiments.planning.report import Plan
from experiments.probe import probe, probe_head, probe_name
from experiments.process import tell
from experiments.settings import SettingsError, run
from experiments.speed import check_table_update, on_table
from experiments.tasks import (
  KINDS,
  Kind,
  check_task,
  examples_of,
  goodness,
  make_model,
  measured,
  predict_users,
  select_by,
)
from experiments.tuning import lengths_of, make_finetuning
from experiments.workdir import (
  RESULT,
  opened_workdir,
  write_dataset,
  write_whole,
)

PREDICTIONS = 'predictions.npz'


def main(settings: FinetuneSettings) -> dict[str, Any] | Plan:
  """Fine-tunes, and returns what `result.json` says; or the plan."""
  settings = with_defaults(settings)
  loop.check_devices(settings)
  check_table_update(settings)
  if settings.plan:
    return plan(settings)
  with opened_workdir(settings) as folder:
    return finetune_in(folder, settings)


def finetune_in(
  folder: pathlib.Path, settings: FinetuneSettings
) -> dict[str, Any]:
  """Fine-tunes in an open folder, unless that was done."""
  if (folder / RESULT).exists():
    tell(f'{folder}: finished, see {RESULT}')
    return json.loads((folder / RESULT).read_text())
  data = open_task(settings)
  write_dataset(folder, data)
  event = event_of(settings, data)
  model_key, train_key = jax.random.split(jax.random.key(settings.seed))
  model, params = make_model(settings, data, model_key)
  if settings.mode == 'zero_shot':
    best, outputs = zero_shot(settings, data, model, params)
  elif settings.mode == 'probe':
    best, outputs = probe(
      settings, folder, data, model['encoder'], params['encoder']
    )
  else:
    if settings.head == 'probe':
      params['head'] = probe_head(
        settings, data, model['encoder'], params['encoder']
      )
    best, outputs = tune(settings, folder, data, model, params, train_key)
  result = {'task': settings.task, 'pretrained': settings.pretrained}
  result |= event | best
  result |= {
    name: measured(values, data, name) for name, values in outputs.items()
  }
  write_predictions(folder, outputs['test'], data)
  text = json.dumps(result, indent=2, allow_nan=False)
  write_whole(folder / RESULT, text + '\n')
  print_result(result, settings)
  return result


def plan(settings: FinetuneSettings) -> Plan:
  """Tells what the run needs, and writes nothing but the data."""
  if settings.mode in ('probe', 'zero_shot'):
    raise SettingsError(
      f'--plan is of training steps, of which --mode={settings.mode} has none: '
      'leave out either'
    )
  check_plan(settings, source=settings.pretrained)
  data = open_task(settings)
  items = planned_items(settings, data)
  known = data._replace(vocabulary=data.vocabulary._replace(items=items))
  model, params = shapes_of(
    functools.partial(make_model, settings, known),
    jax.random.key(settings.seed),
  )
  examples = examples_of(settings, data)
  length, encoded, buckets = lengths_of(settings, examples, model['encoder'])
  make = functools.partial(
    make_finetuning, settings, data, model, buckets=buckets, length=length
  )
  return plan_run(
    settings,
    data,
    examples['train'],
    *shapes_of(make, params),
    length=length,
    buckets=buckets,
    encoded=encoded,
    sequences=1,
  )


def event_of(settings: FinetuneSettings, data: UserData) -> dict[str, str]:
  """Prints what event a conversion looks for, and names it."""
  if data.kind != 'conversion':
    return {}
  event = data.vocabulary.labels[1]
  label = data.splits['train'].first(settings.train_users).label
  share = 100 * label.mean()
  tell(f'event: {event} ({share:.3g} % of the training rows)')
  return {'event': event}


def open_task(settings: FinetuneSettings) -> UserData:
  """The data of the task, split as the flags say.

  Raises:
    SettingsError: the flags do not fit the task.
  """
  check_split_seed(settings)
  if settings.split_seed and settings.task.endswith('_by_user'):
    raise SettingsError(
      '--split_seed deals out rows, and would part the users that '
      f'--task={settings.task} keeps together: leave it out'
    )
  data = open_data(settings, task=settings.task)
  if data.kind == 'pretrain':
    raise SettingsError(
      f'--task={settings.task} has no labels and no targets: there is nothing '
      'to fine-tune on'
    )
  if settings.kind and data.kind == 'ranking':
    raise SettingsError(
      f'--kind={settings.kind} needs labels; {settings.task} is a ranking task'
    )
  data = resplit(data, settings.split_seed)
  data = data._replace(kind=settings.kind or data.kind)
  check_task(settings, data)
  return data


def tune(
  settings: FinetuneSettings,
  folder: pathlib.Path,
  data: UserData,
  model: dict[str, Any],
  params: dict[str, Any],
  key: jax.Array,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Trains; what the best epoch puts out for validation and test rows."""
  encoder, kind = model['encoder'], KINDS[data.kind]
  examples = examples_of(settings, data)
  length, _, buckets = lengths_of(settings, examples, encoder)
  step, state = make_finetuning(
    settings, data, model, params, buckets=buckets, length=length
  )
  predict = make_predict(
    settings, kind, model | {'buckets': buckets}, length=length
  )
  best = loop.train(
    loop.Run(
      settings=settings,
      folder=folder,
      users=examples['train'],
      length=length,
      step=step,
      key=key,
      description=describe(
        encoder,
        data.vocabulary.items,
        settings.flag_values(),
        data.vocabulary.labels,
      ),
      on_epoch=functools.partial(
        validate,
        users=examples['validation'],
        predict=predict,
        kind=kind,
        metric=select_by(settings, data),
      ),
      score_start=settings.head == 'probe',
    ),
    state,
  )
  return {'best_step': int(best.step)}, {
    name: predict(best.params, users=examples[name])
    for name in ('validation', 'test')
  }


def zero_shot(
  settings: FinetuneSettings,
  data: UserData,
  model: dict[str, Any],
  params: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """What the model puts out for validation and test rows as it is."""
  examples = examples_of(settings, data)
  length, _, buckets = lengths_of(settings, examples, model['encoder'])
  predict = make_predict(
    settings, KINDS[data.kind], model | {'buckets': buckets}, length=length
  )
  params = replicate(params)
  return {'best_step': 0}, {
    name: predict(params, users=examples[name])
    for name in ('validation', 'test')
  }


def make_predict(
  settings: FinetuneSettings,
  kind: Kind,
  model: dict[str, Any],
  *,
  length: int,
) -> Callable[..., np.ndarray]:
  """(params, users) -> what the task predicts of all rows of a split."""
  return functools.partial(
    predict_users,
    predict=pmap_step(
      on_table(
        settings,
        functools.partial(prediction, kind, model),
        model['encoder'],
        length=length,
      )
    ),
    settings=settings,
    length=length,
  )


def prediction(
  kind: Kind, model: dict[str, Any], encoder: UserEncoder
) -> Callable:
  """What the task predicts of users, of the encoder or of a smaller one."""
  return functools.partial(kind.predict, **model | {'encoder': encoder})


def validate(
  state: TrainState,
  *,
  users: UserArrays,
  predict: Callable,
  kind: Kind,
  metric: str,
) -> tuple[dict[str, float], float | None]:
  """The metrics on the validation users, and the score that selects.

  None of either where the model puts out what is no number.
  """
  outputs = predict(state.params, users=users)
  if not np.isfinite(outputs).all():
    tell(
      f'WARNING: at step {int(state.step):,} the model puts out nan or '
      'infinity, and is not validated: take a smaller --learning_rate'
    )
    return {}, None
  values = kind.measure(outputs, users.label)
  named = {f'validation_{name}': value for name, value in values.items()}
  return named, goodness(values, metric)


def write_predictions(
  folder: pathlib.Path, outputs: np.ndarray, data: UserData
) -> None:
  """Writes what was put out for each test example, and its number.

  The number is that of the row among all labelled ones, and so the same for
  all methods, seeds and splits.
  """
  test = data.splits['test']
  columns = KINDS[data.kind].columns(outputs, test.label)
  file = io.BytesIO()
  np.savez(file, example_id=test.number, **columns)
  write_whole(folder / PREDICTIONS, file.getvalue())


def print_result(result: dict[str, Any], settings: FinetuneSettings) -> None:
  """Prints the metrics of the best epoch, a line a split."""
  start = result['pretrained'] or 'a random start'
  best = f'step {result["best_step"]:,}'
  if settings.mode == 'probe':
    best = probe_name(result)
  tell(f'{result["task"]} from {start}, {best}:')
  for split in ('validation', 'test'):
    values = ', '.join(
      f'{name} {"none" if value is None else format(value, ".4f")}'
      for name, value in result[split].items()
    )
    tell(f'  {split:<10}  {values}')


if __name__ == '__main__':
  run(main, FinetuneSettings)
