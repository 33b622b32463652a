import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from adaptssr_jax.metrics import accuracy, macro_f1, roc_auc

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
  np.testing.assert_allclose(roc_auc(scores, labels), expected, rtol=1e-6)
  np.testing.assert_allclose(
    roc_auc_jit(scores, labels.astype(np.int32)), expected, rtol=1e-6
  )
  expected = sklearn_metrics.roc_auc_score(labels[where], scores[where])
  auc = roc_auc_jit(scores, labels, where=where)
  np.testing.assert_allclose(auc, expected, rtol=1e-6)


def test_roc_auc_of_extreme_scores():
  inf = jnp.inf
  scores = jnp.array([inf, inf, 1.0, -inf, jnp.nan, inf])
  labels = jnp.array([1, 0, 0, 1, 1, 0])
  where = jnp.array([1, 1, 1, 1, 0, 0], bool)
  # inf ties with inf and beats 1; -inf beats none: (0.5 + 1 + 0 + 0) / 4.
  assert roc_auc_jit(scores, labels, where=where) == 0.375


def test_roc_auc_of_many_equals_sklearn():
  rng = np.random.default_rng(2)
  labels = rng.integers(2, size=100_000)
  scores = (rng.normal(size=labels.size) + labels).astype(np.float32)
  expected = sklearn_metrics.roc_auc_score(labels, scores)
  np.testing.assert_allclose(roc_auc_jit(scores, labels), expected, rtol=1e-6)


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
    macro_f1(predictions, labels, num_classes=7), expected, rtol=1e-6
  )
  np.testing.assert_allclose(
    macro_f1_jit(predictions, labels), expected, rtol=1e-6
  )
  np.testing.assert_allclose(
    macro_f1_jit(predictions, labels, where=where),
    score(labels[where], predictions[where]),
    rtol=1e-6,
  )


def test_macro_f1_ignores_what_where_hides():
  labels = jnp.array([0, 1, 1, -1])
  predictions = jnp.array([0, 1, 0, 0])
  where = jnp.array([True, True, True, False])
  # Class 0: 2 * 1 / (2 + 1); class 1: 2 * 1 / (1 + 2).
  f1 = macro_f1(predictions, labels, num_classes=2, where=where)
  np.testing.assert_allclose(f1, 2 / 3, rtol=1e-6)
  nothing = jnp.zeros(4, bool)
  assert jnp.isnan(macro_f1(predictions, labels, num_classes=2, where=nothing))
