"""Bootstrap and McNemar: calibrated, and equal to slow versions."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from experiments.comparison import significance


def test_weights_are_resamples_of_all_users(monkeypatch):
  # Blocks of 3 resamples, the last one smaller.
  monkeypatch.setattr(significance, '_BLOCK', 15)
  blocks = []

  def keep(weights):
    blocks.append(len(weights))
    return weights

  weights = significance.bootstrap(keep, 5, resamples=200)
  assert blocks == [3] * 66 + [2]
  assert (weights.sum(axis=1) == 5).all()
  # Binomial(5, 1/5): mean 1, variance 0.8.
  assert weights.mean() == 1
  assert weights.var() == pytest.approx(0.8, abs=0.1)
  again = significance.bootstrap(keep, 5, resamples=200)
  assert (again == weights).all()


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
  ('better', 'worse', 'expected'),
  [
    (0, 0, 1),
    (1, 0, 1),
    (4, 4, 1),
    # Twice the ways to draw at most the smaller number, of all 2^n.
    (9, 2, 2 * (1 + 11 + 55) / 2**11),
    (3, 17, 2 * (1 + 20 + 190 + 1140) / 2**20),
  ],
)
def test_mcnemar_by_hand(better, worse, expected):
  first = np.array([1] * better + [0] * worse + [1, 1, 0])
  second = np.array([0] * better + [1] * worse + [1, 1, 0])
  assert significance.mcnemar(first, second) == pytest.approx(expected)
  assert significance.mcnemar(second, first) == pytest.approx(expected)


def test_splits_that_overlap_count_less():
  # The variance is 1; with n_test / n_train = 1/3 the factor is 1/3 + 1/3, so
  # t^2 = 4 / (2/3) = 6. Of 2 degrees of freedom, p = 1 - t / sqrt(2 + t^2).
  differences = np.array([1.0, 2.0, 3.0])
  p = significance.split_test(differences, test_per_train=1 / 3)
  assert p == pytest.approx(1 - np.sqrt(6 / 8))
  assert significance.split_test(
    -differences, test_per_train=1 / 3
  ) == pytest.approx(p)
  # Without overlap it is the paired t test.
  expected = stats.ttest_1samp(differences, 0).pvalue
  assert significance.split_test(
    differences, test_per_train=0
  ) == pytest.approx(expected)
  assert p > expected
  error = significance.split_error(differences, test_per_train=1 / 3)
  assert error == pytest.approx(np.sqrt(2 / 3))
  plain = significance.split_error(differences, test_per_train=0)
  assert plain == pytest.approx(np.sqrt(1 / 3))


def test_an_interval_and_its_test_agree():
  rng = np.random.default_rng(4)
  noise, significant = rng.normal(size=10), []
  for mean in np.linspace(-2, 2, 41):
    values = mean + noise
    p = significance.split_test(values, test_per_train=0.4)
    low, high = significance.split_interval(values, test_per_train=0.4)
    assert (low <= 0 <= high) == (p >= 0.05)
    assert (low + high) / 2 == pytest.approx(values.mean())
    significant.append(p < 0.05)
  assert 0 < sum(significant) < 41


def test_methods_that_never_differ_are_not_told_apart():
  assert significance.split_test(np.zeros(3), test_per_train=0.3) == 1
  assert significance.split_test(np.ones(3), test_per_train=0.3) == 0


def test_the_split_test_is_calibrated_where_splits_overlap():
  # 400 users of whom each split tests a fifth; the true difference is 0.
  rng = np.random.default_rng(5)
  plain, corrected = [], []
  for _ in range(200):
    user = rng.normal(size=400)
    means = np.array(
      [user[rng.permutation(400)[:80]].mean() for _ in range(10)]
    )
    plain.append(significance.split_test(means, test_per_train=0))
    corrected.append(significance.split_test(means, test_per_train=80 / 320))
  # Binomial(200, 0.1) is within 9..33 by 0.999.
  assert 9 <= sum(p < 0.1 for p in corrected) <= 33
  assert sum(p < 0.1 for p in plain) > 45


@pytest.mark.parametrize(
  ('p_values', 'expected'),
  [
    ([], []),
    ([0.25], [0.25]),
    # 3 x .01; 2 x .03; .04, but not less than the one before.
    ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
    ([0.4, 0.01, 0.9], [0.8, 0.03, 0.9]),
    ([0.6, 0.7], [1, 1]),
  ],
)
def test_holm_by_hand(p_values, expected):
  assert significance.holm(p_values) == pytest.approx(expected)
