"""The rows of all splits of a task, side by side, to be read with labels."""

import numpy as np

from adaptssr_jax.data import UserData
from experiments.finetuning.tasks import KINDS, goodness
from experiments.probing.features import Features, bags
from experiments.probing.reading import Labelled, Reading, log_odds


def labelled_rows(
  data: UserData, metric: str, *, positive_weight: float = 1.0
) -> Labelled:
  """The labels of the rows of train, then of validation, then of test.

  Args:
    metric: by which validation chooses.
    positive_weight: what a training row of class 1 counts.
  """
  parts = {name: np.asarray(part.label) for name, part in data.splits.items()}

  def score(outputs: np.ndarray, label: np.ndarray) -> float:
    values = KINDS[data.kind].measure(task_outputs(data, outputs), label)
    # There is no AUC where validation is all of one class.
    return goodness(values, metric) if metric in values else 0.0

  ends = np.cumsum([len(label) for label in parts.values()])
  rows = {
    name: np.arange(end - len(label), end)
    for (name, label), end in zip(parts.items(), ends, strict=True)
  }
  return Labelled(
    np.concatenate(list(parts.values())),
    rows,
    len(data.vocabulary.labels),
    positive_weight,
    score,
  )


def task_outputs(data: UserData, outputs: np.ndarray) -> np.ndarray:
  """What a network would put out: logits of all classes, or log-odds."""
  return log_odds(outputs) if data.kind == 'conversion' else outputs


def outputs_of(reading: Reading, data: UserData) -> dict[str, np.ndarray]:
  """The outputs of validation and test, as those of a network."""
  return {
    name: task_outputs(data, outputs)
    for name, outputs in reading.outputs.items()
  }


def bags_of_rows(data: UserData, max_length: int) -> Features:
  """The bags of all rows, in the order of `labelled_rows`.

  Args:
    max_length: behaviours seen of a user, the last ones; 0: all of them.
  """
  from scipy import sparse

  num_items = len(data.vocabulary.items)
  return sparse.vstack(
    [
      bags(users.items, num_items, max_length=max_length)
      for users in data.splits.values()
    ],
    format='csr',
  )
