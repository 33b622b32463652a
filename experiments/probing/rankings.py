"""Probes for rankings: a ridge regression of user vectors onto the targets.

All are functions of NumPy arrays, on one thread, as in `classifiers`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from experiments.probing.classifiers import ProbeResult, scored
from experiments.probing.features import moments

# Features have a variance of 1; the strongest penalty comes first.
PENALTIES = (1.0, 0.1, 0.01, 0.001)
# Rows that are ranked at a time: 256 x 100,000 scores take 200 MB.
_ROWS = 256


def ranking_candidates(
  vectors: Mapping[str, np.ndarray],
  data: UserData,
  metric: str | None = None,
) -> Iterator[ProbeResult]:
  """Ridge regression from vectors to targets, with each of the penalties.

  W = (S + penalty I)^-1 C,  score_t(u) = (u - m) / s W_t + b_t

  This W minimises, over the training users, the mean of
  |(u - m) / s W + b - y|^2 + penalty |W|^2. Here u is the vector of a user, and
  y is 1 for the user's positives and 0 for the other targets; m and s are the
  mean and the standard deviation of the vectors, S is the correlation matrix of
  their features, C the covariance of (u - m) / s and y, and b the mean of y.
  The closed form takes milliseconds for any number of targets.

  Args:
    vectors: of the users of each split, [users, features].
    data: the ranking task.
    metric: as in `scored`.

  Yields:
    A result for each penalty, which is `chosen['ridge']`, the strongest first.
    Its `outputs` are the ranks of `ranks_of`.
  """
  import threadpoolctl
  from scipy import linalg, sparse

  train = data.splits['train']
  mean, shrink = moments(vectors['train'])
  known = {name: (users - mean) * shrink for name, users in vectors.items()}
  inputs = known['train']
  positives = train.positives
  # The transpose of y, divided by the number of users.
  targets = sparse.csc_matrix(
    (
      np.full(len(positives.values), 1 / len(inputs)),
      positives.values,
      np.cumsum([0, *positives.lengths]),
    ),
    (len(data.vocabulary.labels), len(inputs)),
  )
  shares = np.asarray(targets.sum(axis=1))[:, 0]
  with threadpoolctl.threadpool_limits(1):
    correlation = inputs.T @ inputs / len(inputs)
    covariance = (targets @ inputs).T
  for penalty in PENALTIES:
    with threadpoolctl.threadpool_limits(1):
      system = correlation + penalty * np.eye(len(correlation))
      kernel = linalg.solve(system, covariance, assume_a='pos')
      outputs = {
        name: ranks_of(
          data.splits[name],
          functools.partial(_score, known[name], kernel, shares),
        )
        for name in ('validation', 'test')
      }
    yield scored({'ridge': penalty}, outputs, data, metric)


def _score(
  vectors: np.ndarray, kernel: np.ndarray, shares: np.ndarray, some: np.ndarray
) -> np.ndarray:
  return vectors[some] @ kernel + shares


def blocks(count: int) -> Iterator[np.ndarray]:
  """The numbers 0..count-1 in blocks of rows that are ranked at a time."""
  for start in range(0, count, _ROWS):
    yield np.arange(start, min(start + _ROWS, count))


def ranks_of(
  users: UserArrays, score: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """The rank of each row's positive among all targets, from 1, [rows].

  The user's other positives are excluded, and equal scores share the mean of
  their ranks, as in fine-tuning.

  Args:
    score: (user numbers [block]) -> scores [block, targets], a new array, which
      is changed.
  """
  of_row, ranks = users.user_of_rows(), []
  positive = users.in_row_order(users.positives.values)
  for rows in blocks(users.num_rows):
    some = of_row[rows]
    scores = score(some)
    own = np.take_along_axis(scores, positive[rows, None], axis=1)
    targets = users.targets.padded(some, users.targets.longest, fill=-1)
    line, column = np.nonzero(targets >= 0)
    scores[line, targets[line, column]] = -np.inf
    above, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    ranks.append(1 + above + equal / 2)
  return np.concatenate(ranks).astype(np.float32)
