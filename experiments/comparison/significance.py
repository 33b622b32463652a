"""Statistical tests of the difference between two methods.

All tests are paired, since all methods are tested on the same users. The unit
of resampling is the user, with its rows in all splits and seeds, or in columns
with many splits the split.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

# How many weights are drawn at a time: 32 MB.
_BLOCK = 4_000_000


def bootstrap(
  statistic: Callable[[np.ndarray], np.ndarray],
  num_users: int,
  *,
  resamples: int,
) -> np.ndarray:
  """A statistic of each method, on resamples of the users.

  The resamples are the same in every call.

  Args:
    statistic: (weights, int [block, num_users]) -> its values [block, methods].
      A row of the weights says how often each user is drawn in one of the
      resamples, and adds up to `num_users`.

  Returns:
    [resamples, methods].

  Reference:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
  """
  rng, found = np.random.default_rng(0), []
  rows_at_once = max(1, _BLOCK // num_users)
  for start in range(0, resamples, rows_at_once):
    rows = min(rows_at_once, resamples - start)
    drawn = rng.integers(num_users, size=(rows, num_users))
    # A single bincount serves all rows, whose users get different numbers.
    drawn += num_users * np.arange(rows)[:, None]
    weights = np.bincount(drawn.reshape(-1), minlength=rows * num_users)
    found.append(statistic(weights.reshape(rows, num_users)))
  return np.concatenate(found)


def weighted_means(
  weights: np.ndarray, *, sums: np.ndarray, counts: np.ndarray
) -> np.ndarray:
  """The mean over all examples of the drawn users.

  sum_u w_u sums_u / sum_u w_u counts_u

  Args:
    weights: how often each user was drawn, [resamples, users].
    sums: sums over the examples of each user, [users, methods].
    counts: the number of examples of each user, [users].
  """
  # BLAS multiplies floats, not integers.
  weights = weights.astype(float)
  return weights @ sums / (weights @ counts)[:, None]


def weighted_auc(
  weights: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> np.ndarray:
  """The area under the ROC curve of weighted examples.

  sum over pairs of w+ w- (1[s+ > s-] + 1[s+ = s-] / 2) / (sum w+ sum w-)

  Args:
    weights: how often each example was drawn, [resamples, examples].
    scores: [examples], higher where the positive class is more likely.
    labels: [examples], 0 for the negative class.

  Returns:
    [resamples], nan where only one class was drawn.

  Example:
    >>> scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1])
    >>> weighted_auc(np.array([[1, 1, 1, 1], [1, 0, 1, 2]]), scores, labels)
    array([0.875, 1.   ])
  """
  order = np.argsort(scores, kind='stable')
  _, first_of_equals = np.unique(scores[order], return_index=True)
  positive = labels[order] != 0
  weights = weights[:, order]
  ups, downs = (
    np.add.reduceat(weights * mask, first_of_equals, axis=1)
    for mask in (positive, ~positive)
  )
  below = np.cumsum(downs, axis=1) - downs / 2
  pairs = ups.sum(axis=1) * downs.sum(axis=1)
  with np.errstate(invalid='ignore'):
    return (ups * below).sum(axis=1) / pairs


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Lower and upper end of the 95 % percentile interval, over axis 0."""
  low, high = np.nanquantile(samples, [0.025, 0.975], axis=0)
  return low, high


def p_value(differences: np.ndarray) -> float:
  """The two-sided bootstrap test that the true difference is 0.

  min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + #d))

  The 1 stands for the observed sample: no finite number of resamples can show
  that p is 0.

  Args:
    differences: of two methods, on resamples of the users, [resamples].

  Reference:
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, ch. 4.
  """
  known = differences[~np.isnan(differences)]
  rarer = min((known <= 0).sum(), (known >= 0).sum())
  return min(1.0, 2 * (1 + int(rarer)) / (1 + len(known)))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
  """McNemar's exact test, two-sided, that two classifiers err equally often.

  Under this hypothesis, if n examples are classified correctly by exactly one
  of them, the number of those classified correctly by the first is
  Binomial(n, 1/2). p is 1 if n is 0.

  Args:
    first: 1 where the first classifier is right, else 0, [examples].
    second: the same for the second classifier.

  Reference:
    McNemar, Note on the sampling error of the difference between correlated
    proportions, Psychometrika 1947.
  """
  first, second = np.asarray(first) != 0, np.asarray(second) != 0
  better, differing = int((first & ~second).sum()), int((first ^ second).sum())
  if not differing:
    return 1.0
  return float(scipy.stats.binomtest(better, differing).pvalue)


def split_error(values: np.ndarray, *, test_per_train: float) -> float:
  """The standard error of a mean over random splits, which overlap.

  sqrt((1 / n + n_test / n_train) var)

  The second term accounts for the overlap of the splits, and does not shrink
  with their number. Without it, this is the usual std / sqrt(n).

  Args:
    values: one for each split, [n], with n >= 2.
    test_per_train: the number of test rows over that of training rows, of a
      split.

  Example:
    >>> round(split_error(np.array([1.0, 2.0, 3.0]), test_per_train=1 / 3), 4)
    0.8165

  Reference:
    Nadeau and Bengio, Inference for the generalization error, Machine Learning
    2003.
  """
  factor = 1 / len(values) + test_per_train
  return math.sqrt(factor * float(np.var(values, ddof=1)))


def split_interval(
  values: np.ndarray, *, test_per_train: float
) -> tuple[float, float]:
  """Lower and upper end of the 95 % interval of the mean over random splits.

  mean -+ t_(n - 1)(0.975) split_error
  """
  error = split_error(values, test_per_train=test_per_train)
  reach = error * float(scipy.stats.t.ppf(0.975, len(values) - 1))
  mean = float(np.mean(values))
  return mean - reach, mean + reach


def split_test(differences: np.ndarray, *, test_per_train: float) -> float:
  """The corrected resampled t test that the mean difference is 0.

  t = mean / split_error, two-sided, with n - 1 degrees of freedom; p is 1 if
  the methods never differ.

  Args:
    differences: of two methods on the same splits, [n], with n >= 2.
    test_per_train: as in `split_error`.
  """
  mean = float(np.mean(differences))
  error = split_error(differences, test_per_train=test_per_train)
  if not error:
    return 0.0 if mean else 1.0
  return float(2 * scipy.stats.t.sf(abs(mean / error), len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's correction of p values for their number, in the same order.

  The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) p_j).
  Rejecting every hypothesis whose corrected p is below a level keeps the
  family-wise error rate below that level.

  Reference:
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian
    Journal of Statistics 1979.
  """
  order = np.argsort(p_values, kind='stable')
  times = np.arange(len(p_values), 0, -1)
  ordered = np.minimum(1, times * np.asarray(p_values)[order])
  corrected = np.empty(len(p_values))
  corrected[order] = np.maximum.accumulate(ordered)
  return corrected.tolist()
