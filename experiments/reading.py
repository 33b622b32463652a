"""Reading vectors: what a simple model makes of the features of users.

Features are an array [rows, dim], of which each column is brought to mean 0 and
variance 1 over the training rows; or a sparse matrix [rows, columns], such as a
bag of items, which is taken as it is. Validation chooses among the candidates
of a model: strengths of a penalty, or numbers of trees.

All of it is functions of NumPy arrays and SciPy matrices, on one thread: small
products take longer on many, and how they round would depend on how many.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.features import (
  Features,
  joined,
  moments,
  one_thread,
  standardised,
)

# Inverse strengths of the penalty, the strongest first: for standardised
# vectors, and for bags of unit length.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
BAG_STRENGTHS = (0.3, 1.0, 3.0, 10.0)
# What a bag counts beside a vector.
BAG_WEIGHTS = (0.5, 1.0, 2.0)
TREES = (10, 30, 100, 300)
# The logit of a class without training rows, where it has to be finite.
_NEVER = -30.0
MODELS = ('logistic', 'lightgbm')


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
  """The readings of which `read` returns the best, the simplest first.

  Args:
    features: as of `read`.
    labelled: as of `read`.
    model: as of `read`.
    strengths: as of `read`.
  """
  train = labelled.rows['train']
  features = standardised(features, train)
  if len(np.unique(labelled.label[train])) == 1:
    # A few labels may be all of one class, from which nothing is learned.
    return iter([_only_class(labelled)])
  if model == 'lightgbm':
    return _boosted_trees(features, labelled)
  return _regressions(features, labelled, strengths)


def best_of(readings: Iterable[Reading]) -> Reading:
  """The first of the readings with the highest score."""
  return max(readings, key=_score_of)


def _score_of(reading: Reading) -> float:
  return reading.score


def read_joined(
  vectors: np.ndarray,
  bag: Features,
  labelled: Labelled,
  *,
  weights: Sequence[float] = BAG_WEIGHTS,
  model: str = 'logistic',
  strengths: Sequence[float] = STRENGTHS,
) -> Reading:
  """As `read`, of vectors and bags of items at once, see `joined`.

  Args:
    vectors: of all rows, [rows, dim].
    bag: of all rows, sparse [rows, columns].
    labelled: as of `read`.
    weights: what the bag may count, of which validation chooses.
    model: as of `read`.
    strengths: as of `read`.

  Returns:
    The best candidate, whose `chosen` has 'bag_weight' too.
  """
  return best_of(
    joined_candidates(
      vectors, bag, labelled, model, weights=weights, strengths=strengths
    )
  )


def joined_candidates(
  vectors: np.ndarray,
  bag: Features,
  labelled: Labelled,
  model: str = 'logistic',
  *,
  weights: Sequence[float] = BAG_WEIGHTS,
  strengths: Sequence[float] = STRENGTHS,
) -> Iterator[Reading]:
  """The readings of which `read_joined` returns the best.

  Args:
    vectors: as of `read_joined`.
    bag: as of `read_joined`.
    labelled: as of `read_joined`.
    model: as of `read_joined`.
    weights: as of `read_joined`.
    strengths: as of `read_joined`.
  """
  # Trees see the order of the values of a feature alone.
  for weight in weights if model == 'logistic' else (1.0,):
    features = joined(vectors, bag, labelled.rows['train'], weight=weight)
    for reading in candidates(features, labelled, model, strengths=strengths):
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


def _regressions(
  features: Features, labelled: Labelled, strengths: Sequence[float]
) -> Iterator[Reading]:
  """A logistic regression of each strength, from where the last one ended."""
  import sklearn.exceptions
  import sklearn.linear_model

  train, weight = labelled.rows['train'], {1: labelled.positive_weight}
  model = sklearn.linear_model.LogisticRegression(
    max_iter=1000,
    class_weight=None if labelled.positive_weight == 1 else weight,
    warm_start=True,
  )
  inputs = {name: features[rows] for name, rows in labelled.rows.items()}
  for strength in strengths:
    model.set_params(C=strength)
    with one_thread(), warnings.catch_warnings():
      # A weak penalty may be cut short; validation then judges the model.
      warnings.simplefilter('ignore', sklearn.exceptions.ConvergenceWarning)
      model.fit(inputs['train'], labelled.label[train])
      found = {
        name: _log_softmax(model.decision_function(inputs[name]))
        for name in ('validation', 'test')
      }
    reading = _reading({'C': strength}, found, model.classes_, labelled)
    yield reading._replace(linear=_linear(model, labelled.num_classes))


def _linear(model: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """The matrix and the bias of a regression, of all classes."""
  kernel, bias = model.coef_.T, model.intercept_
  if len(model.classes_) == 2:
    kernel, bias = (
      np.concatenate([np.zeros_like(part), part], axis=-1)
      for part in (kernel, bias)
    )
  linear = np.zeros((len(kernel), num_classes)), np.full(num_classes, _NEVER)
  linear[0][:, model.classes_] = kernel
  linear[1][model.classes_] = bias
  return linear


def _log_softmax(scores: np.ndarray) -> np.ndarray:
  """Log-probabilities, [rows, classes]; of two, their log-odds are given."""
  if scores.ndim == 1:
    scores = np.stack([np.zeros_like(scores), scores], axis=1)
  # Not by way of probabilities, of which sure ones are rounded to 0 and 1.
  scores = scores - scores.max(axis=1, keepdims=True)
  return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def _boosted_trees(features: Features, labelled: Labelled) -> Iterator[Reading]:
  """Gradient boosting, after each of some numbers of trees."""
  import lightgbm

  train, weight = labelled.rows['train'], {1: labelled.positive_weight}
  model = lightgbm.LGBMClassifier(
    n_estimators=max(TREES),
    learning_rate=0.05,
    num_leaves=15,
    class_weight=None if labelled.positive_weight == 1 else weight,
    random_state=0,
    n_jobs=1,
    deterministic=True,
    force_row_wise=True,
    verbosity=-1,
  )
  model.fit(features[train], labelled.label[train])
  for trees in TREES:
    found = {
      name: np.log(
        model.predict_proba(features[labelled.rows[name]], num_iteration=trees)
      )
      for name in ('validation', 'test')
    }
    yield _reading({'trees': trees}, found, model.classes_, labelled)


def _only_class(labelled: Labelled) -> Reading:
  """All training rows are of one class, of which all rows are taken to be."""
  only = labelled.label[labelled.rows['train'][:1]]
  found = {
    name: np.zeros((len(labelled.rows[name]), 1))
    for name in ('validation', 'test')
  }
  return _reading({}, found, only, labelled)


def _reading(
  chosen: dict[str, float],
  found: dict[str, np.ndarray],
  classes: np.ndarray,
  labelled: Labelled,
) -> Reading:
  """Brings log-probabilities to all classes, and scores them."""
  outputs = {}
  for name, values in found.items():
    # A class that is not among the training rows has no chance.
    shape = len(values), labelled.num_classes
    outputs[name] = np.full(shape, -np.inf, np.float32)
    outputs[name][:, classes] = values
  label = labelled.label[labelled.rows['validation']]
  score = (labelled.score or accuracy)(outputs['validation'], label)
  return Reading(chosen, outputs, score)
