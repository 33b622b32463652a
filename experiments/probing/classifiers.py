"""Probes for labels: logistic regression and boosted trees on user features.

Features are an array [rows, dim], of which each column is brought to mean 0 and
variance 1 over the training rows; or a sparse matrix [rows, columns], such as a
bag of items, which is taken as it is. Validation chooses among the candidates
of a model: strengths of a penalty, or numbers of trees.

All of it is functions of NumPy arrays and SciPy matrices, on one thread: small
products take longer on many, and how they round would depend on how many.
"""

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.probing.features import Features, joined, moments, standardised

# Inverse strengths of the penalty, the strongest first.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
# After how many trees boosting may end.
TREES = (10, 30, 100, 300)
# Inverse strengths of the penalty for bags of unit length.
BAG_STRENGTHS = (0.3, 1.0, 3.0, 10.0)
# What a bag counts beside a vector.
BAG_WEIGHTS = (0.5, 2.0, 8.0)
_SPLITS = ('validation', 'test')
# The logit of a class without training rows, where it has to be finite.
_ABSENT = -30.0


class Labelled(NamedTuple):
  """The labels of rows, and what is done with each row."""

  label: np.ndarray  # the class of each row, int [rows]
  rows: Mapping[str, np.ndarray]  # of 'train', 'validation' and 'test'
  num_classes: int  # classes of the task
  positive_weight: float = 1.0  # what a training row of class 1 counts
  # (outputs, labels) of the validation rows -> a number, which is higher if it
  # is better; accuracy where it is None.
  score: Callable[[np.ndarray, np.ndarray], float] | None = None


class ProbeResult(NamedTuple):
  """What a fitted model says."""

  chosen: dict[str, Any]  # in what it differs from the others: {'C': 0.1}
  # For the rows of 'validation' and 'test', the log-probabilities of the
  # classes, float32 [rows, classes]; -inf for one without training rows. In a
  # ranking the ranks of the positives, float32 [rows].
  outputs: dict[str, np.ndarray]
  score: float  # of the validation rows
  # Of a regression, the matrix [features, classes] and bias [classes] that give
  # its logits, of features that are standardised.
  linear: tuple[np.ndarray, np.ndarray] | None = None


def best_regression(
  features: Features,
  labelled: Labelled,
  *,
  strengths: Sequence[float] = STRENGTHS,
) -> ProbeResult:
  """The best logistic regression of the `candidates`.

  Example:
    >>> vectors = np.arange(12.0)[:, None]
    >>> rows = {'train': np.arange(0, 12, 2), 'validation': np.array([1, 11])}
    >>> rows['test'] = np.array([3, 9])
    >>> labelled = Labelled(np.arange(12) // 6, rows, num_classes=2)
    >>> result = best_regression(vectors, labelled)
    >>> result.chosen, result.score
    ({'C': 0.001}, 1.0)
    >>> result.outputs['test'].argmax(axis=1)
    array([0, 1])
  """
  return best_of(candidates(features, labelled, strengths=strengths))


def best_of(results: Iterable[ProbeResult]) -> ProbeResult:
  """The one with the highest score; among equals the first, the simplest."""
  return max(results, key=operator.attrgetter('score'))


def joined_candidates(
  vectors: np.ndarray,
  bag: Features,
  labelled: Labelled,
  model: str = 'logistic',
) -> Iterator[ProbeResult]:
  """As `candidates`, of vectors and bags of items at once, see `joined`.

  Yields:
    Readings whose `chosen` has 'bag_weight' too.
  """
  # Trees see the order of the values of a feature alone.
  for weight in BAG_WEIGHTS if model == 'logistic' else (1.0,):
    features = joined(vectors, bag, labelled.rows['train'], weight=weight)
    for result in candidates(features, labelled, model):
      chosen = {'bag_weight': weight} | result.chosen
      yield result._replace(chosen=chosen)


def candidates(
  features: Features,
  labelled: Labelled,
  model: str = 'logistic',
  *,
  strengths: Sequence[float] = STRENGTHS,
) -> Iterator[ProbeResult]:
  """Fits a classifier with each of its settings, the simplest first.

  Args:
    features: of all rows, [rows, dim], or sparse [rows, columns].
    labelled: the labels of all rows, and which of them are to train on.
    model: 'logistic' regression, or 'lightgbm': boosted trees.
    strengths: of the regression, inverse, the strongest penalty first.

  Yields:
    One for each strength, or for each number of trees.
  """
  train = labelled.rows['train']
  features, label = standardised(features, train), labelled.label[train]
  inputs = {name: features[rows] for name, rows in labelled.rows.items()}
  if len(np.unique(label)) == 1:
    # A few labels may be all of one class, from which nothing is learned.
    sure = {name: np.zeros((inputs[name].shape[0], 1)) for name in _SPLITS}
    yield _result(labelled, {}, sure, label[:1])
    return
  weight = labelled.positive_weight
  weight = None if weight == 1 else {1: weight}
  if model == 'lightgbm':
    yield from _boosted_trees(inputs, label, labelled, weight)
  else:
    yield from _regressions(inputs, label, labelled, weight, strengths)


def _regressions(
  inputs: Mapping[str, Features],
  label: np.ndarray,
  labelled: Labelled,
  weight: dict[int, float] | None,
  strengths: Sequence[float],
) -> Iterator[ProbeResult]:
  """A logistic regression of each strength, from where the last one ended."""
  import sklearn.exceptions
  import sklearn.linear_model
  import threadpoolctl
  from scipy.special import log_softmax

  model = sklearn.linear_model.LogisticRegression(
    max_iter=1000, class_weight=weight, warm_start=True
  )
  for strength in strengths:
    model.set_params(C=strength)
    with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
      # A weak penalty may be cut short; validation then judges the model.
      warnings.simplefilter('ignore', sklearn.exceptions.ConvergenceWarning)
      model.fit(inputs['train'], label)
      scores = {name: model.decision_function(inputs[name]) for name in _SPLITS}
    if len(model.classes_) == 2:
      # The model has the logit of the second one alone.
      scores = {
        name: np.stack([np.zeros_like(logit), logit], axis=1)
        for name, logit in scores.items()
      }
    # Not by way of probabilities, of which sure ones are rounded to 0 and 1.
    outputs = {name: log_softmax(s, axis=1) for name, s in scores.items()}
    kernel, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
      kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
      bias = np.concatenate([np.zeros_like(bias), bias])
    all_kernel = np.zeros((len(kernel), labelled.num_classes))
    all_bias = np.full(labelled.num_classes, _ABSENT)
    all_kernel[:, model.classes_], all_bias[model.classes_] = kernel, bias
    result = _result(labelled, {'C': strength}, outputs, model.classes_)
    yield result._replace(linear=(all_kernel, all_bias))


def _boosted_trees(
  inputs: Mapping[str, Features],
  label: np.ndarray,
  labelled: Labelled,
  weight: dict[int, float] | None,
) -> Iterator[ProbeResult]:
  """Gradient boosting, after each of some numbers of trees."""
  import lightgbm

  model = lightgbm.LGBMClassifier(
    n_estimators=max(TREES),
    learning_rate=0.05,
    num_leaves=15,
    class_weight=weight,
    random_state=0,
    n_jobs=1,
    deterministic=True,
    force_row_wise=True,
    verbosity=-1,
  )
  with warnings.catch_warnings():
    # It gives its columns names, and then misses them in ours.
    warnings.filterwarnings('ignore', 'X does not have valid feature names')
    model.fit(inputs['train'], label)
    found = [
      {
        name: np.log(model.predict_proba(inputs[name], num_iteration=trees))
        for name in _SPLITS
      }
      for trees in TREES
    ]
  for trees, outputs in zip(TREES, found, strict=True):
    yield _result(labelled, {'trees': trees}, outputs, model.classes_)


def _result(
  labelled: Labelled,
  chosen: dict[str, float],
  known: Mapping[str, np.ndarray],
  classes: np.ndarray,
) -> ProbeResult:
  """Brings log-probabilities of known classes to all classes; scores them."""
  outputs = {}
  for name, values in known.items():
    # A class that is not among the training rows has no chance.
    shape = len(values), labelled.num_classes
    outputs[name] = np.full(shape, -np.inf, np.float32)
    outputs[name][:, classes] = values
  label = labelled.label[labelled.rows['validation']]
  score = (labelled.score or _accuracy)(outputs['validation'], label)
  return ProbeResult(chosen, outputs, score)


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
  return float((outputs.argmax(axis=1) == labels).mean())


def task_outputs(kind: str, outputs: np.ndarray) -> np.ndarray:
  """What a network of a kind of task puts out, from log-probabilities.

  Logits of all classes, [rows, classes]. Of a conversion log-odds, [rows],
  which stay finite where nothing was learned, so that the log loss is.
  """
  if kind == 'conversion':
    return np.clip(outputs[:, 1] - outputs[:, 0], -30, 30)
  return outputs


def on_vectors(
  linear: tuple[np.ndarray, np.ndarray], vectors: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A linear model of vectors, from the one of standardised vectors.

  (u - m) / s W + c = u (W / s) + (c - m (W / s))

  Args:
    linear: of a `ProbeResult`.
    vectors: of all rows, [rows, dim].
    train: the rows over which they were standardised.

  Returns:
    The matrix [dim, classes] and the bias [classes], in float32.
  """
  kernel, bias = linear
  mean, shrink = moments(vectors, train)
  kernel = shrink[:, None] * kernel
  return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)
