"""Bootstrap and McNemar: calibrated, and equal to the slow way."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from experiments.comparison import significance


def test_weights_are_resamples_of_all_users(monkeypatch):
  # Blocks of 3 resamples, the last one smaller.
  monkeypatch.setattr(significance, '_BLOCK', 15)
  blocks = list(significance.user_weights(5, resamples=200, seed=3))
  assert [len(block) for block in blocks] == [3] * 66 + [2]
  weights = np.concatenate(blocks)
  assert (weights.sum(axis=1) == 5).all()
  # Binomial(5, 1/5): mean 1, variance 0.8.
  assert weights.mean() == 1
  assert weights.var() == pytest.approx(0.8, abs=0.1)
  again = significance.user_weights(5, resamples=200, seed=3)
  assert (np.concatenate(list(again)) == weights).all()


def test_means_of_a_resample_are_those_of_its_rows():
  rng = np.random.default_rng(0)
  user = rng.integers(0, 6, 20)
  values = rng.random((20, 2))
  counts = np.bincount(user, minlength=6)
  sums = np.stack([np.bincount(user, v, minlength=6) for v in values.T], axis=1)
  weights = np.array([[1] * 6, [2, 0, 1, 0, 3, 0]])
  found = significance.weighted_means(weights, sums=sums, counts=counts)
  for row, weight in zip(found, weights, strict=True):
    drawn = np.concatenate(
      [
        values[user == who]
        for who, times in enumerate(weight)
        for _ in range(times)
      ]
    )
    assert row == pytest.approx(drawn.mean(axis=0))


def test_auc_with_weights_is_that_of_repeated_rows():
  rng = np.random.default_rng(1)
  # Few values, so that there are ties between the classes.
  scores, labels = rng.integers(0, 6, 30) / 4, rng.integers(0, 2, 30)
  weights = rng.integers(0, 4, (7, 30))
  found = significance.weighted_auc(weights, scores, labels)
  for value, weight in zip(found, weights, strict=True):
    expected = metrics.roc_auc_score(
      np.repeat(labels, weight), np.repeat(scores, weight)
    )
    assert value == pytest.approx(expected)
  one_class = np.where(labels == 1, weights, 0)
  assert np.isnan(significance.weighted_auc(one_class, scores, labels)).all()


def p_of(difference):
  samples = significance.bootstrap(
    lambda weights: significance.weighted_means(
      weights, sums=difference[:, None], counts=np.ones(len(difference))
    ),
    len(difference),
    resamples=400,
  )
  return significance.p_value(samples[:, 0])


def test_the_p_value_is_calibrated():
  rng = np.random.default_rng(2)
  null = [p_of(rng.normal(size=60)) for _ in range(200)]
  # Binomial(200, 0.1) is within 9..33 by 0.999.
  assert 9 <= sum(p < 0.1 for p in null) <= 33
  assert np.mean(null) == pytest.approx(0.5, abs=0.1)
  clear = [p_of(rng.normal(0.8, size=60)) for _ in range(20)]
  assert max(clear) < 0.01


def test_the_p_value_knows_no_direction_and_is_never_0():
  samples = np.array([-0.1, 0.2, 0.3, 0.4])
  assert significance.p_value(samples) == 2 * 2 / 5
  assert significance.p_value(-samples) == 2 * 2 / 5
  assert significance.p_value(np.ones(9)) == 0.2
  assert significance.p_value(np.zeros(9)) == 1
  assert significance.p_value(np.array([np.nan, 1.0, 1.0, 1.0])) == 0.5


def test_the_interval_covers_the_mean():
  rng = np.random.default_rng(3)
  covered = 0
  for _ in range(100):
    values = rng.normal(size=(50, 1))
    samples = significance.bootstrap(
      lambda weights, values=values: significance.weighted_means(
        weights, sums=values, counts=np.ones(50)
      ),
      50,
      resamples=300,
    )
    low, high = significance.interval(samples)
    assert low.shape == high.shape == (1,)
    covered += low[0] <= 0 <= high[0]
  # Binomial(100, 0.94) is within 85..99 by 0.999.
  assert 85 <= covered <= 99


@pytest.mark.parametrize(
  ('better', 'worse'), [(0, 0), (1, 0), (4, 4), (9, 2), (3, 17), (700, 620)]
)
def test_mcnemar_is_the_binomial_test(better, worse):
  first = np.array([1] * better + [0] * worse + [1, 1, 0])
  second = np.array([0] * better + [1] * worse + [1, 1, 0])
  expected = 1.0
  if better + worse:
    expected = stats.binomtest(better, better + worse, 0.5).pvalue
  assert significance.mcnemar(first, second) == pytest.approx(expected)
  assert significance.mcnemar(second, first) == pytest.approx(expected)
