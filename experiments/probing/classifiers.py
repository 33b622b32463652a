"""Classifiers of features: each fitted with some settings, one by one."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.flags.binder import SettingsError
from experiments.probing.features import Features, one_thread

# After how many trees boosting may end.
TREES = (10, 30, 100, 300)
_READ = ('validation', 'test')


class Fitted(NamedTuple):
  """What a fitted classifier says of the rows of 'validation' and 'test'.

  Args:
    chosen: the settings by which it differs from the others: {'C': 0.1}.
    outputs: log-probabilities, [rows, classes].
    classes: those that training rows have, increasing, [classes].
    linear: of a regression, the matrix [features, classes] and the bias
      [classes] that give its logits.
  """

  chosen: dict[str, float]
  outputs: dict[str, np.ndarray]
  classes: np.ndarray
  linear: tuple[np.ndarray, np.ndarray] | None = None


def fit(
  inputs: Mapping[str, Features],
  label: np.ndarray,
  model: str,
  *,
  strengths: Sequence[float],
  positive_weight: float = 1.0,
) -> Iterator[Fitted]:
  """Fits a classifier with each of its settings, the simplest first.

  Args:
    inputs: the features of the rows of 'train', 'validation' and 'test'.
    model: 'logistic' regression, or 'lightgbm': boosted trees.
    strengths: of the regression, inverse, the strongest penalty first.
    positive_weight: what a training row of class 1 counts.

  Returns:
    One for each strength, or for each number of trees.

  Example:
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> inputs = dict.fromkeys(('train', 'validation', 'test'), x)
    >>> label = np.array([0, 0, 1, 1])
    >>> (fitted,) = fit(inputs, label, 'logistic', strengths=(1.0,))
    >>> np.exp(fitted.outputs['test'][:, 1]).round(2)
    array([0.19, 0.38, 0.62, 0.81])
  """
  if len(np.unique(label)) == 1:
    # A few labels may be all of one class, from which nothing is learned.
    sure = {name: np.zeros((inputs[name].shape[0], 1)) for name in _READ}
    return iter([Fitted({}, sure, label[:1])])
  weight = None if positive_weight == 1 else {1: positive_weight}
  if model == 'lightgbm':
    return _boosted_trees(inputs, label, weight)
  return _regressions(inputs, label, weight, strengths)


def _regressions(
  inputs: Mapping[str, Features],
  label: np.ndarray,
  weight: dict[int, float] | None,
  strengths: Sequence[float],
) -> Iterator[Fitted]:
  """A logistic regression of each strength, from where the last one ended."""
  import sklearn.exceptions
  import sklearn.linear_model

  model = sklearn.linear_model.LogisticRegression(
    max_iter=1000, class_weight=weight, warm_start=True
  )
  for strength in strengths:
    model.set_params(C=strength)
    with one_thread(), warnings.catch_warnings():
      # A weak penalty may be cut short; validation then judges the model.
      warnings.simplefilter('ignore', sklearn.exceptions.ConvergenceWarning)
      model.fit(inputs['train'], label)
      outputs = {
        name: _log_softmax(model.decision_function(inputs[name]))
        for name in _READ
      }
    yield Fitted({'C': strength}, outputs, model.classes_, _linear(model))


def _linear(model: Any) -> tuple[np.ndarray, np.ndarray]:
  """The matrix and the bias; of two classes, the model has those of one."""
  kernel, bias = model.coef_.T, model.intercept_
  if len(model.classes_) == 2:
    kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
    bias = np.concatenate([np.zeros_like(bias), bias])
  return kernel.copy(), bias.copy()


def _log_softmax(scores: np.ndarray) -> np.ndarray:
  """Log-probabilities, [rows, classes]; of two, their log-odds are given."""
  if scores.ndim == 1:
    scores = np.stack([np.zeros_like(scores), scores], axis=1)
  # Not by way of probabilities, of which sure ones are rounded to 0 and 1.
  scores = scores - scores.max(axis=1, keepdims=True)
  return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def _boosted_trees(
  inputs: Mapping[str, Features],
  label: np.ndarray,
  weight: dict[int, float] | None,
) -> Iterator[Fitted]:
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
    for trees in TREES:
      outputs = {
        name: np.log(model.predict_proba(inputs[name], num_iteration=trees))
        for name in _READ
      }
      yield Fitted({'trees': trees}, outputs, model.classes_)


def check_lightgbm(what: str) -> None:
  """Raises `SettingsError`, which names the extra, if it is not installed."""
  try:
    import lightgbm  # noqa: F401
  except (ImportError, OSError) as error:
    # OSError: its own library needs one that the machine has not.
    raise SettingsError(
      f"{what} needs LightGBM ({error}): pip install '.[lightgbm]'"
    ) from error
