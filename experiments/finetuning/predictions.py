"""What a model predicts of the rows of a task, and the file of it."""

import functools
import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.step import TrainState, pmap_step
from experiments.finetuning.data import examples_of
from experiments.finetuning.step import lengths_of
from experiments.finetuning.tasks import KINDS, Kind, goodness
from experiments.flags.finetuning import FinetuneSettings
from experiments.run.batches import batches_in_order
from experiments.run.process import tell
from experiments.run.speed import on_table
from experiments.run.workdir import atomic_write

PREDICTIONS = 'predictions.npz'


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
        functools.partial(kind.predict, **model),
        model['encoder'],
        length=length,
      )
    ),
    settings=settings,
    length=length,
  )


def predict_users(
  params: dict[str, Any],
  *,
  users: UserArrays,
  predict: Callable,
  settings: FinetuneSettings,
  length: int,
) -> np.ndarray:
  """An output for each labelled row of a split, in the order of the rows.

  Args:
    predict: (params, batch) -> the outputs of the users of all devices.
    length: behaviours seen of a user.

  Returns:
    The outputs, [rows, ...], without those of padding.
  """
  outputs = []
  for batch, rows in batches_in_order(users, settings, length):
    outputs.append(np.asarray(predict(params, batch))[: len(rows)])
  outputs = np.concatenate(outputs)
  if users.places is None:
    return outputs
  exists = np.arange(outputs.shape[1]) < users.places.lengths[:, None]
  return users.in_row_order(outputs[exists])


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
  atomic_write(folder / PREDICTIONS, file.getvalue())
