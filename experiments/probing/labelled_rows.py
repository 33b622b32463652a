"""The labelled rows of a task, side by side, and regressions on their bags."""

from typing import Any

import numpy as np

from adaptssr_jax.data import UserData
from experiments.finetuning.tasks import KINDS, goodness
from experiments.probing.features import Features, bag_svd, bags, tf_idf
from experiments.probing.reading import (
  BAG_STRENGTHS,
  Labelled,
  Reading,
  best_of,
  log_odds,
  read,
)

# Strengths of the regularisation, strongest first, for bags of ones and for
# bags weighted to unit length.
_STRENGTHS = {'binary': (0.001, 0.01, 0.1, 1.0), 'tf_idf': BAG_STRENGTHS}


def labelled_rows(
  data: UserData, metric: str, *, positive_weight: float = 1.0
) -> Labelled:
  """The labels of the rows of train, then of validation, then of test.

  Args:
    metric: by which validation chooses.
  """
  parts = {name: np.asarray(part.label) for name, part in data.splits.items()}

  def score(outputs: np.ndarray, label: np.ndarray) -> float:
    values = KINDS[data.kind].measure(task_outputs(data, outputs), label)
    # There is no AUC where validation is all of one class.
    return goodness(values, metric) if metric in values else 0.0

  ends = np.cumsum([len(label) for label in parts.values()])
  rows = {
    name: np.arange(end - len(label), end)
    for (name, label), end in zip(parts.items(), ends, strict=True)
  }
  return Labelled(
    np.concatenate(list(parts.values())),
    rows,
    len(data.vocabulary.labels),
    positive_weight,
    score,
  )


def task_outputs(data: UserData, outputs: np.ndarray) -> np.ndarray:
  """What a network would put out: logits of all classes, or log-odds."""
  return log_odds(outputs) if data.kind == 'conversion' else outputs


def outputs_of(reading: Reading, data: UserData) -> dict[str, np.ndarray]:
  """The outputs of validation and test, as those of a network."""
  return {
    name: task_outputs(data, outputs)
    for name, outputs in reading.outputs.items()
  }


def bags_of_rows(data: UserData, max_length: int) -> Features:
  """The bags of all rows in the order of `labelled_rows`; length 0 is all."""
  from scipy import sparse

  num_items = len(data.vocabulary.items)
  return sparse.vstack(
    [
      bags(users.items, num_items, max_length=max_length)
      for users in data.splits.values()
    ],
    format='csr',
  )


def classify_bags(
  data: UserData, length: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Logistic regression on bags of items; validation chooses its strength.

  Args:
    length: behaviours seen of a user; 0: all of them.

  Returns:
    What was chosen, and its `outputs_of` validation and test.
  """
  labelled = labelled_rows(data, KINDS[data.kind].select_by[0])
  bag, readings = bags_of_rows(data, length), []
  for weighting, strengths in _STRENGTHS.items():
    features = bag
    if weighting == 'tf_idf':
      features = tf_idf(bag, rows=labelled.rows['train'])
    reading = read(features, labelled, strengths=strengths)
    chosen = {'weighting': weighting} | reading.chosen
    readings.append(reading._replace(chosen=chosen))
  best = best_of(readings)
  return best.chosen, outputs_of(best, data)


def classify_svd(
  data: UserData, length: int, *, num_components: int, train_users: int = 0
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """As `classify_bags`, of a truncated SVD of the bags of all rows.

  Args:
    train_users: labelled rows to train on, the first; 0: all.
  """
  labelled = labelled_rows(data, KINDS[data.kind].select_by[0])
  train = labelled.rows['train'][: train_users or None]
  labelled = labelled._replace(rows=labelled.rows | {'train': train})
  bag = tf_idf(bags_of_rows(data, length))
  vectors = bag_svd(bag, num_components=num_components)
  best = read(vectors, labelled)
  chosen = {'num_components': vectors.shape[1]} | best.chosen
  return chosen, outputs_of(best, data)
