"""Reading vectors: what a simple model makes of the features of users.

Features are an array [rows, dim], of which each column is brought to mean 0 and
variance 1 over the training rows; or a sparse matrix [rows, columns], such as a
bag of items, which is taken as it is. Validation chooses among the candidates
of a model: strengths of a penalty, or numbers of trees.

All of it is functions of NumPy arrays and SciPy matrices, on one thread: small
products take longer on many, and how they round would depend on how many.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from experiments.probing.classifiers import (
  STRENGTHS,
  Labelled,
  Reading,
  candidates,
)
from experiments.probing.features import Features, joined, moments

# Inverse strengths of the penalty for bags of unit length.
BAG_STRENGTHS = (0.3, 1.0, 3.0, 10.0)
# What a bag counts beside a vector.
BAG_WEIGHTS = (0.5, 2.0, 8.0)


def read(
  features: Features,
  labelled: Labelled,
  *,
  model: str = 'logistic',
  strengths: Sequence[float] = STRENGTHS,
) -> Reading:
  """The best of the `candidates`; among equals the first, the simplest.

  Example:
    >>> vectors = np.arange(12.0)[:, None]
    >>> rows = {'train': np.arange(0, 12, 2), 'validation': np.array([1, 11])}
    >>> rows['test'] = np.array([3, 9])
    >>> labelled = Labelled(np.arange(12) // 6, rows, num_classes=2)
    >>> reading = read(vectors, labelled)
    >>> reading.chosen, reading.score
    ({'C': 0.001}, 1.0)
    >>> reading.outputs['test'].argmax(axis=1)
    array([0, 1])
  """
  return best_of(candidates(features, labelled, model, strengths=strengths))


def best_of(readings: Iterable[Reading]) -> Reading:
  """The first of the readings with the highest score."""
  return max(readings, key=operator.attrgetter('score'))


def joined_candidates(
  vectors: np.ndarray,
  bag: Features,
  labelled: Labelled,
  model: str = 'logistic',
) -> Iterator[Reading]:
  """As `candidates`, of vectors and bags of items at once, see `joined`.

  Yields:
    Readings whose `chosen` has 'bag_weight' too.
  """
  # Trees see the order of the values of a feature alone.
  for weight in BAG_WEIGHTS if model == 'logistic' else (1.0,):
    features = joined(vectors, bag, labelled.rows['train'], weight=weight)
    for reading in candidates(features, labelled, model):
      chosen = {'bag_weight': weight} | reading.chosen
      yield reading._replace(chosen=chosen)


def log_odds(outputs: np.ndarray) -> np.ndarray:
  """Of class 1 of two, [rows], from log-probabilities [rows, 2].

  They stay finite where nothing was learned, so that the log loss is.
  """
  return np.clip(outputs[:, 1] - outputs[:, 0], -30, 30)


def on_vectors(
  linear: tuple[np.ndarray, np.ndarray], vectors: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A linear model of vectors, from the one of standardised vectors.

  (u - m) / s W + c = u (W / s) + (c - m (W / s))

  Args:
    linear: of a `Reading`.
    vectors: of all rows, [rows, dim].
    train: the rows over which they were standardised.

  Returns:
    The matrix [dim, classes] and the bias [classes], in float32.
  """
  kernel, bias = linear
  mean, shrink = moments(vectors, train)
  kernel = shrink[:, None] * kernel
  return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)
