"""Classifiers of features: each fitted with some settings, one by one."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.flags.binder import SettingsError
from experiments.probing.features import Features, one_thread, standardised

# Inverse strengths of the penalty, the strongest first.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
# After how many trees boosting may end.
TREES = (10, 30, 100, 300)
_READ = ('validation', 'test')
# The logit of a class without training rows, where it has to be finite.
_NEVER = -30.0


class Labelled(NamedTuple):
  """The labels of rows, and what is done with each row."""

  label: np.ndarray  # the class of each row, int [rows]
  rows: Mapping[str, np.ndarray]  # of 'train', 'validation' and 'test'
  num_classes: int  # classes of the task
  positive_weight: float = 1.0  # what a training row of class 1 counts
  # (outputs, labels) of the validation rows -> a number, which is higher if it
  # is better; accuracy where it is None.
  score: Callable[[np.ndarray, np.ndarray], float] | None = None


class Reading(NamedTuple):
  """What a fitted model says."""

  chosen: dict[str, float]  # in what it differs from the others: {'C': 0.1}
  # For the rows of 'validation' and 'test', the log-probabilities of the
  # classes, float32 [rows, classes]; -inf for one without training rows.
  outputs: dict[str, np.ndarray]
  score: float  # of the validation rows
  # Of a regression, the matrix [features, classes] and bias [classes] that give
  # its logits, of features that are standardised.
  linear: tuple[np.ndarray, np.ndarray] | None = None


def candidates(
  features: Features,
  labelled: Labelled,
  model: str = 'logistic',
  *,
  strengths: Sequence[float] = STRENGTHS,
) -> Iterator[Reading]:
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
    sure = {name: np.zeros((inputs[name].shape[0], 1)) for name in _READ}
    yield _reading(labelled, {}, sure, label[:1])
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
) -> Iterator[Reading]:
  """A logistic regression of each strength, from where the last one ended."""
  import sklearn.exceptions
  import sklearn.linear_model
  from scipy.special import log_softmax

  model = sklearn.linear_model.LogisticRegression(
    max_iter=1000, class_weight=weight, warm_start=True
  )
  for strength in strengths:
    model.set_params(C=strength)
    with one_thread(), warnings.catch_warnings():
      # A weak penalty may be cut short; validation then judges the model.
      warnings.simplefilter('ignore', sklearn.exceptions.ConvergenceWarning)
      model.fit(inputs['train'], label)
      scores = {name: model.decision_function(inputs[name]) for name in _READ}
    if len(model.classes_) == 2:
      # The model has the logit of the second one alone.
      scores = {
        name: np.stack([np.zeros_like(of), of], axis=1)
        for name, of in scores.items()
      }
    # Not by way of probabilities, of which sure ones are rounded to 0 and 1.
    outputs = {name: log_softmax(of, axis=1) for name, of in scores.items()}
    kernel, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
      kernel = np.concatenate([np.zeros_like(kernel), kernel], axis=1)
      bias = np.concatenate([np.zeros_like(bias), bias])
    all_kernel = np.zeros((len(kernel), labelled.num_classes))
    all_bias = np.full(labelled.num_classes, _NEVER)
    all_kernel[:, model.classes_], all_bias[model.classes_] = kernel, bias
    reading = _reading(labelled, {'C': strength}, outputs, model.classes_)
    yield reading._replace(linear=(all_kernel, all_bias))


def _boosted_trees(
  inputs: Mapping[str, Features],
  label: np.ndarray,
  labelled: Labelled,
  weight: dict[int, float] | None,
) -> Iterator[Reading]:
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
      yield _reading(labelled, {'trees': trees}, outputs, model.classes_)


def _reading(
  labelled: Labelled,
  chosen: dict[str, float],
  known: Mapping[str, np.ndarray],
  classes: np.ndarray,
) -> Reading:
  """Brings log-probabilities of known classes to all classes; scores them."""
  outputs = {}
  for name, values in known.items():
    # A class that is not among the training rows has no chance.
    shape = len(values), labelled.num_classes
    outputs[name] = np.full(shape, -np.inf, np.float32)
    outputs[name][:, classes] = values
  label = labelled.label[labelled.rows['validation']]
  score = (labelled.score or _accuracy)(outputs['validation'], label)
  return Reading(chosen, outputs, score)


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
  return float((outputs.argmax(axis=1) == labels).mean())


def check_lightgbm(what: str) -> None:
  """Raises `SettingsError`, which names the extra, if it is not installed."""
  try:
    import lightgbm  # noqa: F401
  except (ImportError, OSError) as error:
    # OSError: its own library needs one that the machine has not.
    raise SettingsError(
      f"{what} needs LightGBM ({error}): pip install '.[lightgbm]'"
    ) from error
