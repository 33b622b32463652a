"""Probes for labels: logistic regression and boosted trees on user features.

Features are an array [rows, dim], whose columns are standardised to mean 0 and
variance 1 over the training rows; or a sparse matrix [rows, columns], such as a
bag of items, which is used unchanged. Validation rows choose among the
candidates of a model: strengths of a penalty, or numbers of trees.

All are functions of NumPy arrays and SciPy matrices, on one thread: small
products are slower on several, and their rounding would depend on the number.
"""

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.probing.features import Features, joined, moments, standardised

# Inverse strengths of the penalty; the strongest penalty comes first.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
# The numbers of trees among which validation chooses.
TREES = (10, 30, 100, 300)
# Inverse strengths of the penalty for bags of unit length.
BAG_STRENGTHS = (0.3, 1.0, 3.0, 10.0)
# The weights of a bag that is joined to vectors.
BAG_WEIGHTS = (0.5, 2.0, 8.0)
_SPLITS = ('validation', 'test')
# A finite logit for classes without training rows.
_ABSENT = -30.0


class Labelled(NamedTuple):
  """The labels of rows, and the split of each row."""

  label: np.ndarray  # the class of each row, int [rows]
  rows: Mapping[str, np.ndarray]  # the rows of 'train', 'validation' and 'test'
  num_classes: int  # the number of classes of the task
  positive_weight: float = 1.0  # the weight of training rows of class 1
  # (outputs, labels) of the validation rows -> a score; higher is better. None
  # means accuracy.
  score: Callable[[np.ndarray, np.ndarray], float] | None = None


class ProbeResult(NamedTuple):
  """The outputs and the score of a fitted model."""

  chosen: dict[
    str, Any
  ]  # the settings that differ between candidates: {'C': 1}
  # For the rows of 'validation' and 'test': the log-probabilities of the
  # classes, float32 [rows, classes], -inf for classes without training rows; in
  # a ranking the ranks of the positives, float32 [rows].
  outputs: dict[str, np.ndarray]
  score: float  # on the validation rows
  # The matrix [features, classes] and bias [classes] of a logistic regression,
  # which give its logits from standardised features.
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
  """The result with the highest score; among equals the first, the simplest."""
  return max(results, key=operator.attrgetter('score'))


def joined_candidates(
  vectors: np.ndarray,
  bag: Features,
  labelled: Labelled,
  model: str = 'logistic',
) -> Iterator[ProbeResult]:
  """As `candidates`, on vectors that are `joined` with bags of items.

  Yields:
    Results whose `chosen` has 'bag_weight' too.
  """
  # Trees depend only on the order of the values of a feature.
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
    model: 'logistic' regression, or 'lightgbm': boosted trees.
    strengths: inverse strengths of the penalty of the regression.

  Yields:
    A result for each strength, or for each number of trees.
  """
  train = labelled.rows['train']
  features, label = standardised(features, train), labelled.label[train]
  inputs = {name: features[rows] for name, rows in labelled.rows.items()}
  if len(np.unique(label)) == 1:
    # If all training labels are of one class, it is predicted with certainty.
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
  """A logistic regression for each strength; each starts from the last one."""
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
      # With a weak penalty it may not converge; validation judges the model.
      warnings.simplefilter('ignore', sklearn.exceptions.ConvergenceWarning)
      model.fit(inputs['train'], label)
      scores = {name: model.decision_function(inputs[name]) for name in _SPLITS}
    if len(model.classes_) == 2:
      # The model gives the logit of the second class only.
      scores = {
        name: np.stack([np.zeros_like(logit), logit], axis=1)
        for name, logit in scores.items()
      }
    # Probabilities would round to 0 and 1 where the model is certain.
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
  """Gradient boosting, evaluated after each number of trees."""
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
    # LightGBM names its columns, and warns that our arrays have no names.
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
  """Extends log-probabilities of some classes to all, and scores them."""
  outputs = {}
  for name, values in known.items():
    # A class without training rows has probability 0.
    shape = len(values), labelled.num_classes
    outputs[name] = np.full(shape, -np.inf, np.float32)
    outputs[name][:, classes] = values
  label = labelled.label[labelled.rows['validation']]
  score = (labelled.score or _accuracy)(outputs['validation'], label)
  return ProbeResult(chosen, outputs, score)


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
  return float((outputs.argmax(axis=1) == labels).mean())


def task_outputs(kind: str, outputs: np.ndarray) -> np.ndarray:
  """The outputs that a network would have, from log-probabilities.

  For classification these are logits, [rows, classes]. For conversion they are
  log-odds, [rows], clipped so that the log loss is finite.
  """
  if kind == 'conversion':
    return np.clip(outputs[:, 1] - outputs[:, 0], -30, 30)
  return outputs


def on_vectors(
  linear: tuple[np.ndarray, np.ndarray], vectors: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A linear model of standardised vectors as one of the vectors themselves.

  (u - m) / s W + c = u (W / s) + (c - m (W / s))

  Args:
    linear: the field of a `ProbeResult`.
    vectors: of all rows, [rows, dim].
    train: the rows over which they were standardised.

  Returns:
    The matrix [dim, classes] and the bias [classes], in float32.
  """
  kernel, bias = linear
  mean, shrink = moments(vectors, train)
  kernel = shrink[:, None] * kernel
  return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)
