"""Metrics against scikit-learn and plain loops."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from adaptssr_jax.metrics import (
  accuracy,
  hit_rate,
  macro_f1,
  ndcg,
  rank,
  reciprocal_rank,
  roc_auc,
)

roc_auc_jit = jax.jit(roc_auc)
macro_f1_jit = jax.jit(functools.partial(macro_f1, num_classes=7))


def test_accuracy():
  logits = jnp.array([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
  hits = accuracy(logits, jnp.array([[1, 1], [0, 0]]))
  chex.assert_type(hits, jnp.float32)
  np.testing.assert_array_equal(hits, [[1, 0], [0, 1]])
  np.testing.assert_array_equal(
    jax.jit(accuracy)(logits, jnp.ones((2, 2), int)), [[1, 0], [1, 0]]
  )


@pytest.mark.parametrize('levels', [2, 10, 10**6])
@pytest.mark.parametrize('seed', [0, 1])
def test_roc_auc_equals_sklearn(levels, seed):
  rng = np.random.default_rng(seed)
  scores = (rng.integers(levels, size=200) / levels).astype(np.float32)
  labels = rng.random(200) < 0.3
  where = rng.random(200) < 0.7
  expected = sklearn_metrics.roc_auc_score(labels, scores)
  np.testing.assert_allclose(roc_auc(scores, labels), expected, rtol=1e-5)
  np.testing.assert_allclose(
    roc_auc_jit(scores, labels.astype(np.int32)), expected, rtol=1e-5
  )
  expected = sklearn_metrics.roc_auc_score(labels[where], scores[where])
  auc = roc_auc_jit(scores, labels, where=where)
  np.testing.assert_allclose(auc, expected, rtol=1e-5)


def test_roc_auc_of_extreme_scores():
  inf = jnp.inf
  scores = jnp.array([inf, inf, 1.0, -inf, jnp.nan, inf])
  labels = jnp.array([1, 0, 0, 1, 1, 0])
  where = jnp.array([1, 1, 1, 1, 0, 0], bool)
  # inf ties with inf and beats 1; -inf beats none: (0.5 + 1 + 0 + 0) / 4.
  assert roc_auc_jit(scores, labels, where=where) == 0.375


@pytest.mark.parametrize('broken', [[0], [1], [0, 1, 2, 3]])
def test_roc_auc_of_a_score_that_is_nan_is_nan(broken):
  scores = np.array([0.1, 0.4, 0.35, 0.8], np.float32)
  labels = np.array([0, 0, 1, 1])
  assert roc_auc_jit(scores, labels) == 0.75
  scores[broken] = np.nan
  assert jnp.isnan(roc_auc_jit(scores, labels))


def test_roc_auc_of_many_equals_sklearn():
  rng = np.random.default_rng(2)
  labels = rng.integers(2, size=100_000)
  scores = (rng.normal(size=labels.size) + labels).astype(np.float32)
  expected = sklearn_metrics.roc_auc_score(labels, scores)
  np.testing.assert_allclose(roc_auc_jit(scores, labels), expected, rtol=1e-5)


@pytest.mark.parametrize('labels', [[0, 0], [1, 1]])
def test_roc_auc_without_a_class_is_nan(labels):
  scores, labels = jnp.array([0.1, 0.2]), jnp.array(labels)
  assert jnp.isnan(roc_auc_jit(scores, labels))
  other = jnp.append(scores, 0.3), jnp.append(labels, 1 - labels[0])
  assert not jnp.isnan(roc_auc_jit(*other))
  where = jnp.array([True, True, False])
  assert jnp.isnan(roc_auc_jit(*other, where=where))
  assert jnp.isnan(roc_auc_jit(*other, where=jnp.zeros(3, bool)))


@pytest.mark.parametrize('seed', range(3))
def test_macro_f1_equals_sklearn(seed):
  rng = np.random.default_rng(seed)
  # Class 6 is never seen; 5 is predicted but never true; 0 the other way.
  labels = rng.integers(0, 5, 60)
  predictions = np.where(rng.random(60) < 0.5, labels, rng.integers(1, 6, 60))
  predictions = np.where(predictions == 0, 5, predictions)
  where = rng.random(60) < 0.5
  score = functools.partial(sklearn_metrics.f1_score, average='macro')
  expected = score(labels, predictions)
  np.testing.assert_allclose(
    macro_f1(predictions, labels, num_classes=7), expected, rtol=1e-5
  )
  np.testing.assert_allclose(
    macro_f1_jit(predictions, labels), expected, rtol=1e-5
  )
  np.testing.assert_allclose(
    macro_f1_jit(predictions, labels, where=where),
    score(labels[where], predictions[where]),
    rtol=1e-5,
  )


def test_macro_f1_ignores_what_where_hides():
  labels = jnp.array([0, 1, 1, -1])
  predictions = jnp.array([0, 1, 0, 0])
  where = jnp.array([True, True, True, False])
  # Class 0: 2 * 1 / (2 + 1); class 1: 2 * 1 / (1 + 2).
  f1 = macro_f1(predictions, labels, num_classes=2, where=where)
  np.testing.assert_allclose(f1, 2 / 3, rtol=1e-5)
  nothing = jnp.zeros(4, bool)
  assert jnp.isnan(macro_f1(predictions, labels, num_classes=2, where=nothing))


def rank_by_counting(relevant, others, where):
  place = 1
  for other, counts in zip(others, where, strict=True):
    if counts:
      place += 0 if other < relevant else 0.5 if other == relevant else 1
  return place


def test_rank_counts_who_is_before():
  rng = np.random.default_rng(0)
  relevant = rng.integers(6, size=40).astype(np.float32)
  others = rng.integers(6, size=(40, 9)).astype(np.float32)
  where = rng.random((40, 9)) < 0.8
  rows = zip(relevant, others, where, strict=True)
  expected = [rank_by_counting(*row) for row in rows]
  ranks = jax.jit(rank)(relevant, others, where=where)
  np.testing.assert_array_equal(ranks, expected)
  assert len(set(expected)) > 10


def test_a_model_that_tells_no_item_apart_gets_the_middle_place():
  assert rank(jnp.zeros(()), jnp.zeros(100)) == 51
  assert rank(jnp.nan, jnp.zeros(100)) == 101
  assert rank(jnp.zeros(()), jnp.full(100, jnp.nan)) == 101


def test_metrics_of_ranks_equal_a_loop():
  ranks = [1, 1.5, 2, 5, 5.5, 10, 11, 400]
  for k in (1, 5, 10):
    inside = [float(place <= k) for place in ranks]
    found = hit_rate(jnp.array(ranks), k=k)
    np.testing.assert_array_equal(found, inside)
    inverse = [x / place for x, place in zip(inside, ranks, strict=True)]
    gains = [
      x / np.log2(place + 1) for x, place in zip(inside, ranks, strict=True)
    ]
    found = reciprocal_rank(jnp.array(ranks), k=k)
    np.testing.assert_allclose(found, inverse, rtol=1e-5)
    np.testing.assert_allclose(ndcg(jnp.array(ranks), k=k), gains, rtol=1e-5)


def test_ndcg_equals_sklearn():
  scores = np.random.default_rng(1).normal(size=(30, 25)).astype(np.float32)
  relevance = np.zeros_like(scores)
  relevance[:, 3] = 1
  ranks = rank(scores[:, 3], np.delete(scores, 3, axis=1))
  expected = sklearn_metrics.ndcg_score(relevance, scores, k=10)
  np.testing.assert_allclose(ndcg(ranks, k=10).mean(), expected, rtol=1e-5)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize('metric', [hit_rate, reciprocal_rank, ndcg])
def test_ranks_may_be_the_largest_integers(metric, dtype):
  ranks = np.array([1, 3, np.iinfo(dtype).max])
  found = metric(ranks.astype(dtype), k=255)
  chex.assert_type(found, jnp.float32)
  expected = metric(ranks.astype(np.float32), k=255)
  np.testing.assert_array_equal(found, expected)


def test_classes_that_do_not_occur_make_no_nan():
  labels = jnp.array([0, 2])
  with jax.debug_nans(True):
    assert macro_f1(labels, labels, num_classes=4) == 1
