"""Fine-tunes a user model on a labelled task, and tests it once.

  python -m experiments.finetune --task=age --pretrained=runs/latest

With --pretrained=DIR it starts from the encoder of that run, else at random.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax import metrics
from adaptssr_jax.checkpoint import describe
from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.models import TaskHead
from adaptssr_jax.objectives.classification import (
  class_logits,
  classification_objective,
)
from adaptssr_jax.train import AXIS, TrainState, pmap_step, train_step
from experiments import loop
from experiments.datasets import open_data
from experiments.encoders import make_encoder
from experiments.settings import SettingsError, flag, run
from experiments.shared_settings import EncoderSettings, RunSettings
from experiments.workdir import open_workdir, write_dataset, write_whole

_RESULT = 'result.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(RunSettings, EncoderSettings):
  """The flags of fine-tuning."""

  task: str = flag(
    'gender', 'The task: gender, age, ...; of user_tables the label column.'
  )
  pretrained: str = flag(
    '', 'Workdir of the run whose encoder to start from; else at random.'
  )
  num_epochs: int = flag(5, 'Passes over the users.', low=1)
  num_steps: int = flag(
    0, 'Updates, instead of --num_epochs; 0: use that.', low=0
  )
  train_users: int = flag(
    0,
    'Labelled rows to train on, the first of the shuffled split; 0: all.',
    low=0,
  )
  select_by: str = flag(
    'accuracy',
    'The validation metric by which the best epoch is chosen.',
    choices=('accuracy', 'macro_f1', 'auc'),
  )


def main(settings: FinetuneSettings) -> dict[str, Any]:
  """Fine-tunes, and returns what `result.json` says."""
  loop.check_devices(settings)
  folder = open_workdir(settings)
  if (folder / _RESULT).exists():
    print(f'{folder}: finished, see {_RESULT}')
    return json.loads((folder / _RESULT).read_text())
  data = open_data(settings, task=settings.task)
  check_task(settings, data)
  write_dataset(folder, data)
  result = tune(settings, folder, data)
  write_whole(folder / _RESULT, json.dumps(result, indent=2) + '\n')
  print_result(result)
  return result


def tune(
  settings: FinetuneSettings, folder: pathlib.Path, data: UserData
) -> dict[str, Any]:
  """Trains, and evaluates the best epoch on validation and test users."""
  model_key, train_key = jax.random.split(jax.random.key(settings.seed))
  model, params = make_model(settings, data, model_key)
  optimizer = loop.make_optimizer(settings)
  evaluate = functools.partial(
    evaluate_users,
    predict=pmap_step(functools.partial(class_logits, **model)),
    settings=settings,
    length=model['encoder'].max_length,
  )
  best = loop.train(
    loop.Run(
      settings=settings,
      folder=folder,
      users=data.splits['train'].first(settings.train_users),
      length=model['encoder'].max_length,
      step=functools.partial(
        train_step,
        loss_fn=functools.partial(classification_objective, **model),
        optimizer=optimizer,
        key=train_key,
        axis_name=AXIS,
      ),
      description=describe(
        model['encoder'],
        data.vocabulary.items,
        settings.flag_values(),
        data.vocabulary.labels,
      ),
      on_epoch=functools.partial(
        validate,
        users=data.splits['validation'],
        evaluate=evaluate,
        select_by=settings.select_by,
      ),
    ),
    params,
    optimizer,
  )
  return {
    'task': settings.task,
    'pretrained': settings.pretrained,
    'best_step': int(best.step),
  } | {
    split: evaluate(best.params, users=data.splits[split])
    for split in ('validation', 'test')
  }


def check_task(settings: FinetuneSettings, data: UserData) -> None:
  """Raises `SettingsError` where the task cannot be fine-tuned or selected."""
  if data.splits['train'].label is None:
    raise SettingsError(
      f'--task={settings.task} is not a classification task; fine-tuning '
      'knows no other kind yet'
    )
  classes = len(data.vocabulary.labels)
  if classes < 2:
    raise SettingsError(
      f'--task={settings.task} has but one class, {data.vocabulary.labels[0]}: '
      'there is nothing to learn'
    )
  validated = len(np.unique(data.splits['validation'].label))
  if settings.select_by == 'auc' and (classes, validated) != (2, 2):
    raise SettingsError(
      f'--select_by=auc needs 2 classes; {settings.task} has {classes}, and '
      f'{validated} among its validation users'
    )


def make_model(
  settings: FinetuneSettings, data: UserData, key: jax.Array
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The encoder and its head, as arguments of the objective; the parameters."""
  items, labels = data.vocabulary
  encoder_key, head_key = jax.random.split(key)
  encoder, params = make_encoder(
    settings, items, encoder_key, source=settings.pretrained
  )
  head = TaskHead(num_outputs=len(labels))
  user = jnp.zeros((1, encoder.num_queries * encoder.embed_dim))
  head_params = head.init(head_key, user)['params']
  model = {'encoder': encoder, 'head': head, 'axis_name': AXIS}
  return model, {'encoder': params, 'head': head_params}


def evaluate_users(
  params: dict[str, Any],
  *,
  users: UserArrays,
  predict: Callable,
  settings: FinetuneSettings,
  length: int,
) -> dict[str, float]:
  """Accuracy, macro-F1, and for two classes AUC, over all users of a split."""
  logits, labels = [], []
  for batch in loop.batches_in_order(users, settings, length):
    where = batch['where'].reshape(-1)
    logits.append(np.asarray(predict(params, batch))[where])
    labels.append(batch['label'].reshape(-1)[where])
  logits, labels = np.concatenate(logits), np.concatenate(labels)
  num_classes = logits.shape[1]
  values = {
    'accuracy': metrics.accuracy(logits, labels).mean(),
    'macro_f1': metrics.macro_f1(
      logits.argmax(axis=1), labels, num_classes=num_classes
    ),
  }
  # Undefined where the users of a split are all of one class.
  if num_classes == 2 and len(np.unique(labels)) == 2:
    values['auc'] = metrics.roc_auc(logits[:, 1] - logits[:, 0], labels)
  return {name: float(value) for name, value in values.items()}


def validate(
  state: TrainState, *, users: UserArrays, evaluate: Callable, select_by: str
) -> tuple[dict[str, float], float]:
  """The metrics on the validation users, and the one that selects."""
  values = evaluate(state.params, users=users)
  named = {f'validation_{name}': value for name, value in values.items()}
  return named, values[select_by]


def print_result(result: dict[str, Any]) -> None:
  """Prints the metrics of the best epoch, a line a split."""
  start = result['pretrained'] or 'a random start'
  print(f'{result["task"]} from {start}, step {result["best_step"]:,}:')
  for split in ('validation', 'test'):
    values = ', '.join(
      f'{name} {value:.4f}' for name, value in result[split].items()
    )
    print(f'  {split:<10}  {values}', flush=True)


if __name__ == '__main__':
  run(main, FinetuneSettings)
