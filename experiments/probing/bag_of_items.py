"""Logistic regression on the set of items that a user has seen."""

from typing import Any

import numpy as np

from adaptssr_jax.data import UserData
from experiments.finetuning.tasks import KINDS
from experiments.probing.features import bag_svd, tf_idf
from experiments.probing.labelled_rows import (
  bags_of_rows,
  labelled_rows,
  outputs_of,
)
from experiments.probing.reading import BAG_STRENGTHS, best_of, read

# Strengths of the regularisation, strongest first, for bags of ones and for
# bags weighted to unit length.
_STRENGTHS = {'binary': (0.001, 0.01, 0.1, 1.0), 'tf_idf': BAG_STRENGTHS}


def classify_bags(
  data: UserData, length: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Logistic regression on bags of items; validation chooses its strength.

  Args:
    length: behaviours seen of a user; 0: all of them.

  Returns:
    What was chosen, and its outputs for validation and test: logits of the
    classes [rows, classes], or log-odds of a conversion [rows].
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
    train_users: labelled rows to train on, the first; 0: all. The SVD is of all
      rows in any case.

  Returns:
    As `classify_bags`.
  """
  labelled = labelled_rows(data, KINDS[data.kind].select_by[0])
  train = labelled.rows['train'][: train_users or None]
  labelled = labelled._replace(rows=labelled.rows | {'train': train})
  bag = tf_idf(bags_of_rows(data, length))
  vectors = bag_svd(bag, num_components=num_components)
  best = read(vectors, labelled)
  chosen = {'num_components': vectors.shape[1]} | best.chosen
  return chosen, outputs_of(best, data)
