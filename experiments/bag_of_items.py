"""Logistic regression on the set of items that a user has seen."""

import warnings
from typing import Any

import numpy as np

from adaptssr_jax.data import UserData
from experiments.scikit_learn import scikit_learn
from experiments.tasks import KINDS

# Strengths of the regularisation, strongest first, for bags of ones and for
# bags weighted to unit length.
_STRENGTHS = {
  'binary': (0.001, 0.01, 0.1, 1.0),
  'tf_idf': (0.3, 1.0, 3.0, 10.0),
}


def classify_bags(
  data: UserData, length: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Logistic regression on bags of items; validation chooses its strength.

  Args:
    data: a task with labels.
    length: behaviours seen of a user.

  Returns:
    What was chosen, and its outputs for validation and test: logits of the
    classes [rows, classes], or log-odds of a conversion [rows].

  Raises:
    SettingsError: scikit-learn is not installed; names the extra.
  """
  kind = KINDS[data.kind]
  label = {name: np.asarray(part.label) for name, part in data.splits.items()}
  best = None
  for weighting, strengths in _STRENGTHS.items():
    bags = bags_of(data, length, weighting)
    for strength in strengths:
      model = _fit(bags['train'], label['train'], strength)
      outputs = {
        name: _outputs(model, bags[name], data)
        for name in ('validation', 'test')
      }
      values = kind.measure(outputs['validation'], label['validation'])
      score = values.get(kind.select_by[0], 0.0)
      # Among equals the first, which is the simplest.
      if best is None or score > best[0]:
        best = score, {'weighting': weighting, 'C': strength}, outputs
  _, chosen, outputs = best
  return chosen, outputs


def bags_of(data: UserData, length: int, weighting: str) -> dict[str, Any]:
  """Which items the last behaviours of each row hold, as sparse matrices.

  Args:
    data: the splits.
    length: behaviours seen of a user.
    weighting: 'binary', or 'tf_idf': rarer items weigh more, by how many rows
      of the training split hold them, and rows have unit length.

  Returns:
    [rows, items + 1] of every split; column 0 stands for padding.
  """
  from scipy import sparse

  bags = {}
  for name, users in data.splits.items():
    items = users.items.padded(np.arange(len(users.items)), length)
    row, place = np.nonzero(items)
    shape = (len(items), len(data.vocabulary.items) + 1)
    bag = sparse.csr_matrix(
      (np.ones(len(row)), (row, items[row, place])), shape
    )
    # Items met twice were added up.
    bag.data[:] = 1
    bags[name] = bag
  if weighting == 'tf_idf':
    weigh = scikit_learn(
      'bag_of_items'
    ).feature_extraction.text.TfidfTransformer()
    weigh.fit(bags['train'])
    bags = {name: weigh.transform(bag) for name, bag in bags.items()}
  return bags


def _fit(features: Any, labels: np.ndarray, strength: float) -> Any:
  learn = scikit_learn('bag_of_items')
  if len(np.unique(labels)) == 1:
    # A few labels may be all of one class, from which nothing is learned.
    return learn.dummy.DummyClassifier(strategy='prior').fit(features, labels)
  model = learn.linear_model.LogisticRegression(C=strength, max_iter=300)
  with warnings.catch_warnings():
    # Weak regularisation may be cut short; validation then judges the model.
    warnings.simplefilter('ignore', learn.exceptions.ConvergenceWarning)
    return model.fit(features, labels)


def _outputs(model: Any, bags: Any, data: UserData) -> np.ndarray:
  """What a network would put out: logits of all classes, or log-odds."""
  # A class that is not among the training rows has no chance.
  shape = bags.shape[0], len(data.vocabulary.labels)
  logits = np.full(shape, -np.inf, np.float32)
  logits[:, model.classes_] = model.predict_log_proba(bags)
  if data.kind == 'conversion':
    # Finite where nothing was learned, so that the log loss is.
    return np.clip(logits[:, 1] - logits[:, 0], -30, 30)
  return logits
