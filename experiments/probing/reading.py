"""Reading vectors: what a simple model makes of the features of users.

Features are an array [rows, dim], of which each column is brought to mean 0 and
variance 1 over the training rows; or a sparse matrix [rows, columns], such as a
bag of items, which is taken as it is. Validation chooses among the candidates
of a model: strengths of a penalty, or numbers of trees.

All of it is functions of NumPy arrays and SciPy matrices, on one thread: small
products take longer on many, and how they round would depend on how many.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.probing.classifiers import Fitted, fit
from experiments.probing.features import (
  Features,
  joined,
  moments,
  standardised,
)

# Inverse strengths of the penalty, the strongest first: for standardised
# vectors, and for bags of unit length.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
BAG_STRENGTHS = (0.3, 1.0, 3.0, 10.0)
# What a bag counts beside a vector.
BAG_WEIGHTS = (0.5, 2.0, 8.0)
# The logit of a class without training rows, where it has to be finite.
_NEVER = -30.0


class Labelled(NamedTuple):
  """The labels of rows, and what is done with each row.

  Args:
    label: the class of each row, int [rows].
    rows: the numbers of the rows of 'train', 'validation' and 'test'.
    num_classes: classes of the task.
    positive_weight: what a training row of class 1 counts.
    score: (outputs, labels) of the validation rows -> a number, which is higher
      if it is better; accuracy where it is None.
  """

  label: np.ndarray
  rows: Mapping[str, np.ndarray]
  num_classes: int
  positive_weight: float = 1.0
  score: Callable[[np.ndarray, np.ndarray], float] | None = None


class Reading(NamedTuple):
  """What a fitted model says.

  Args:
    chosen: the settings by which it differs from the others: {'C': 0.1}.
    outputs: for the rows of 'validation' and 'test', the log-probabilities of
      the classes, float32 [rows, classes]; -inf for one without training rows.
    score: of the validation rows.
    linear: of a regression, the matrix [features, classes] and bias [classes]
      that give its logits, of features that are standardised.
  """

  chosen: dict[str, float]
  outputs: dict[str, np.ndarray]
  score: float
  linear: tuple[np.ndarray, np.ndarray] | None = None


def read(
  features: Features,
  labelled: Labelled,
  *,
  model: str = 'logistic',
  strengths: Sequence[float] = STRENGTHS,
) -> Reading:
  """Fits the candidates of a model, of which validation chooses.

  Args:
    features: of all rows, [rows, dim], or sparse [rows, columns].
    labelled: the labels of all rows, and which of them are to train on.
    model: 'logistic' regression, or 'lightgbm': boosted trees.
    strengths: of the regression, inverse, the strongest penalty first.

  Returns:
    The best candidate; among equals the first, which is the simplest.

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


def candidates(
  features: Features,
  labelled: Labelled,
  model: str = 'logistic',
  *,
  strengths: Sequence[float] = STRENGTHS,
) -> Iterator[Reading]:
  """Yields the readings of which `read` takes the best, the simplest first."""
  features = standardised(features, labelled.rows['train'])
  fitted = fit(
    {name: features[rows] for name, rows in labelled.rows.items()},
    labelled.label[labelled.rows['train']],
    model,
    strengths=strengths,
    positive_weight=labelled.positive_weight,
  )
  for one in fitted:
    yield _reading(one, labelled)


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

  Args:
    vectors: of all rows, [rows, dim].
    bag: of all rows, sparse [rows, columns].
    labelled: the labels of all rows, and which of them are to train on.
    model: see `read`.

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


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
  """The share of rows whose largest output is that of their class."""
  return float((outputs.argmax(axis=1) == labels).mean())


def _reading(fitted: Fitted, labelled: Labelled) -> Reading:
  """Brings log-probabilities to all classes, and scores them."""
  outputs = {}
  for name, values in fitted.outputs.items():
    # A class that is not among the training rows has no chance.
    shape = len(values), labelled.num_classes
    outputs[name] = np.full(shape, -np.inf, np.float32)
    outputs[name][:, fitted.classes] = values
  label = labelled.label[labelled.rows['validation']]
  score = (labelled.score or accuracy)(outputs['validation'], label)
  linear = fitted.linear and _of_all_classes(fitted, labelled.num_classes)
  return Reading(fitted.chosen, outputs, score, linear)


def _of_all_classes(
  fitted: Fitted, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  kernel, bias = fitted.linear
  all_kernel = np.zeros((len(kernel), num_classes))
  all_bias = np.full(num_classes, _NEVER)
  all_kernel[:, fitted.classes], all_bias[fitted.classes] = kernel, bias
  return all_kernel, all_bias
