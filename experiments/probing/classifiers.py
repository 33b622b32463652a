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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptssr_jax.data import UserData
from experiments.finetuning.tasks import KINDS, as_score
from experiments.flags.finetuning import SELECT_BY
from experiments.probing.features import BySplit, moments, standardised

# Inverse strengths of the penalty; the strongest penalty comes first.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
# The numbers of trees among which validation chooses.
TREES = (10, 30, 100, 300)
# Inverse strengths of the penalty for bags of unit length.
BAG_STRENGTHS = (0.3, 1.0, 3.0, 10.0)
_TESTED = ('validation', 'test')
# A finite logit for classes without training rows.
_ABSENT = -30.0


class ProbeResult(NamedTuple):
  """The outputs and the score of a fitted model."""

  # The settings that differ between candidates: {'C': 1}
  chosen: dict[str, Any]
  # For the rows of 'validation' and 'test', what a network of this kind of task
  # would give: logits of the classes, -inf for those without training rows;
  # log-odds; or the ranks of the positives.
  outputs: dict[str, np.ndarray]
  values: dict[str, float]  # the metrics on the validation rows
  score: float  # one of them, with the sign by which higher is better
  # The classes with training rows, and the matrix [features, classes] and bias
  # [classes] of a logistic regression, which give their logits from
  # standardised features.
  linear: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


def scored(
  chosen: dict[str, Any],
  outputs: dict[str, np.ndarray],
  data: UserData,
  metric: str | None = None,
) -> ProbeResult:
  """Scores the outputs of a model by its metrics on the validation rows.

  Args:
    metric: the metric that is the score [the first of `SELECT_BY`].
  """
  label = data.splits['validation'].label
  values = KINDS[data.kind].measure(outputs['validation'], label)
  metric = metric or SELECT_BY[data.kind][0]
  # The AUC is not defined if all validation rows are of one class.
  score = as_score(values, metric) if metric in values else 0.0
  return ProbeResult(chosen, outputs, values, score)


def best_of(results: Iterable[ProbeResult]) -> ProbeResult:
  """The result with the highest score; among equals the first, the simplest."""
  return max(results, key=operator.attrgetter('score'))


def candidates(
  features: BySplit,
  data: UserData,
  model: str = 'logistic',
  *,
  metric: str | None = None,
  positive_weight: float = 1.0,
  strengths: Sequence[float] = STRENGTHS,
) -> Iterator[ProbeResult]:
  """Fits a classifier with each of its settings, the simplest first.

  Args:
    features: of the rows of each split, [rows, dim], or sparse [rows, columns].
    data: the task with labels.
    model: 'logistic' regression, or 'lightgbm': boosted trees.
    metric: as in `scored`.
    positive_weight: the weight of training rows of class 1.
    strengths: inverse strengths of the penalty of the regression.

  Yields:
    A result for each strength, or for each number of trees.

  Example:
    >>> from adaptssr_jax.data import UserArrays, Vocabulary
    >>> label = np.array([0, 0, 1, 1])
    >>> names = ('train', 'validation', 'test')
    >>> rows = UserArrays(None, None, label)
    >>> data = UserData('buyers', dict.fromkeys(names, rows),
    ...                 Vocabulary([], ['no', 'yes']), 'classification')
    >>> features = dict.fromkeys(names, np.array([[1.0], [2.0], [5.0], [6.0]]))
    >>> best = best_of(candidates(features, data))
    >>> best.chosen, best.score
    ({'C': 0.001}, 1.0)
    >>> best.outputs['test'].argmax(axis=1)
    array([0, 0, 1, 1])
  """
  inputs = standardised(features)
  label = np.asarray(data.splits['train'].label)
  if len(np.unique(label)) == 1:
    # If all training labels are of one class, it is predicted with certainty.
    sure = {name: np.zeros((inputs[name].shape[0], 1)) for name in _TESTED}
    fitted = [({}, sure, label[:1], None)]
  else:
    weight = None if positive_weight == 1 else {1: positive_weight}
    if model == 'lightgbm':
      fitted = _boosted_trees(inputs, label, weight)
    else:
      fitted = _regressions(inputs, label, weight, strengths)
  for chosen, known, classes, linear in fitted:
    outputs = {
      name: _task_outputs(values, classes, data)
      for name, values in known.items()
    }
    result = scored(chosen, outputs, data, metric)
    yield result._replace(linear=linear)


# The settings of a fitted model; the log-probabilities of the classes with
# training rows; these classes; and the field `linear` of its result.
_Fitted = tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, Any]


def _regressions(
  inputs: BySplit,
  label: np.ndarray,
  weight: dict[int, float] | None,
  strengths: Sequence[float],
) -> Iterator[_Fitted]:
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
      logits = {name: model.decision_function(inputs[name]) for name in _TESTED}
    kernel, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
      # The model gives the logit of the second class only.
      logits = {
        name: np.stack([np.zeros_like(logit), logit], axis=1)
        for name, logit in logits.items()
      }
      kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
      bias = np.concatenate([np.zeros_like(bias), bias])
    # Probabilities would round to 0 and 1 where the model is certain.
    outputs = {name: log_softmax(s, axis=1) for name, s in logits.items()}
    linear = model.classes_, kernel, bias
    yield {'C': strength}, outputs, model.classes_, linear


def _boosted_trees(
  inputs: BySplit, label: np.ndarray, weight: dict[int, float] | None
) -> Iterator[_Fitted]:
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
        for name in _TESTED
      }
      for trees in TREES
    ]
  for trees, outputs in zip(TREES, found, strict=True):
    yield {'trees': trees}, outputs, model.classes_, None


def _task_outputs(
  values: np.ndarray, classes: np.ndarray, data: UserData
) -> np.ndarray:
  """The outputs that a network would have, from log-probabilities of classes.

  For classification these are logits, [rows, classes], -inf for other classes.
  For conversion they are log-odds, [rows], clipped so that the log loss is
  finite.
  """
  shape = len(values), len(data.vocabulary.labels)
  outputs = np.full(shape, -np.inf, np.float32)
  outputs[:, classes] = values
  if data.kind == 'conversion':
    return np.clip(outputs[:, 1] - outputs[:, 0], -30, 30)
  return outputs


def linear_head(
  result: ProbeResult, vectors: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """A logistic regression on standardised vectors as one on the vectors.

  (u - m) / s W + c = u (W / s) + (c - m (W / s))

  Args:
    vectors: of the training rows, over which they were standardised.

  Returns:
    The matrix [dim, classes] and the bias [classes], in float32.
  """
  classes, known_kernel, known_bias = result.linear
  kernel = np.zeros((len(known_kernel), num_classes))
  bias = np.full(num_classes, _ABSENT)
  kernel[:, classes], bias[classes] = known_kernel, known_bias
  mean, shrink = moments(vectors)
  kernel = shrink[:, None] * kernel
  return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)
