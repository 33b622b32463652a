"""The predictions for the rows of a task, and the files with the result."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.training.step import TrainState, pmap_step
from experiments.finetuning.tasks import (
  KINDS,
  Kind,
  as_score,
  with_buckets,
)
from experiments.flags.finetuning import FinetuneSettings
from experiments.run.batches import outputs_in_order
from experiments.run.process import print_line
from experiments.run.steps import Sequences, on_table
from experiments.run.workdir import RESULT, atomic_savez, atomic_write

PREDICTIONS = 'predictions.npz'


def make_predict(
  settings: FinetuneSettings,
  kind: Kind,
  model: dict[str, Any],
  sequences: Sequences,
) -> Callable[..., np.ndarray]:
  """Returns (params, users) -> the outputs for all rows of a split."""
  step = on_table(
    with_buckets(kind.predict, model, sequences.buckets), model['encoder']
  )
  return functools.partial(
    predict_users,
    predict=pmap_step(step),
    batch_size=settings.batch_size,
    length=sequences.length,
  )


def predict_users(
  params: dict[str, Any],
  *,
  users: UserArrays,
  predict: Callable,
  batch_size: int,
  length: int,
) -> np.ndarray:
  """An output for each labelled row of a split, in the order of the rows.

  Args:
    predict: (params, batch) -> the outputs of the users of all devices.

  Returns:
    [rows, ...], without those of padding.
  """
  step = functools.partial(predict, params)
  found = outputs_in_order(step, users, batch_size=batch_size, length=length)
  outputs = np.concatenate([some for _, some in found])
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
  """The metrics on the validation users, and the score that selects an epoch.

  Returns ({}, None) with a warning if an output is nan or infinite.
  """
  outputs = predict(state.params, users=users)
  if not np.isfinite(outputs).all():
    print_line(
      f'WARNING: at step {int(state.step):,} the model has outputs with nan or '
      'infinity, which are not validated: take a smaller --learning_rate'
    )
    return {}, None
  values = kind.measure(outputs, users.label)
  named = {f'validation_{name}': value for name, value in values.items()}
  return named, as_score(values, metric)


def write_result(
  folder: pathlib.Path,
  about: dict[str, Any],
  outputs: dict[str, np.ndarray],
  data: UserData,
) -> dict[str, Any]:
  """Writes `predictions.npz` and `result.json`.

  The predictions are those for the test rows, with `user_id`, the raw id, and
  `example_id`: the number of the row among all labelled rows, the same for all
  methods, seeds and splits. With labels, `classes` has the name of each class.

  Args:
    about: the entries of the result in addition to the metrics.
    outputs: for the validation and test rows.

  Returns:
    The content of `result.json`. A metric that is not finite is None.
  """
  kind, result = KINDS[data.kind], dict(about)
  for name, found in outputs.items():
    values = kind.measure(found, data.splits[name].label)
    # One output without a number makes all metrics meaningless.
    broken = np.isnan(found).any()
    result[name] = {
      metric: None if broken or not np.isfinite(value) else value
      for metric, value in values.items()
    }
  test = data.splits['test']
  columns = kind.columns(outputs['test'], test.label)
  if test.label is not None:
    columns['classes'] = np.array(data.vocabulary.labels)
  user_id = np.array(test.user_ids(test.user_of_rows()))
  atomic_savez(
    folder / PREDICTIONS, user_id=user_id, example_id=test.number, **columns
  )
  text = json.dumps(result, indent=2, allow_nan=False)
  atomic_write(folder / RESULT, text + '\n')
  return result
