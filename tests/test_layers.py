import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from adaptssr_jax.layers import LayerNorm, gelu, standardise


def slow_standardise(x, epsilon):
  """Row by row, in float64."""
  rows = []
  for row in np.asarray(x, np.float64).reshape(-1, x.shape[-1]):
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    rows.append(
      [(value - mean) / math.sqrt(variance + epsilon) for value in row]
    )
  return np.reshape(rows, x.shape)


def slow_gelu(x):
  return x * (1 + math.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize('epsilon', [1e-12, 0.5])
def test_standardise(epsilon):
  x = np.random.default_rng(0).normal(3, 2, (2, 3, 5)).astype(np.float32)
  expected = slow_standardise(x, epsilon)
  standard = standardise(jnp.asarray(x), epsilon)
  np.testing.assert_allclose(standard, expected, atol=1e-5)


@pytest.mark.parametrize('epsilon', [1e-12, 0.5])
def test_gradient_of_standardise(epsilon):
  """Central differences of the oracle, in float64."""
  rng = np.random.default_rng(1)
  x, weight = rng.normal(1, 2, (2, 4)), rng.normal(0, 1, (2, 4))
  expected = np.zeros_like(x)
  for at in np.ndindex(*x.shape):
    step = np.zeros_like(x)
    step[at] = 1e-5
    change = slow_standardise(x + step, epsilon) - slow_standardise(
      x - step, epsilon
    )
    expected[at] = np.sum(weight * change) / 2e-5
  _, pull = jax.vjp(
    lambda x: standardise(x, epsilon), jnp.asarray(x, jnp.float32)
  )
  (gradient,) = pull(jnp.asarray(weight, jnp.float32))
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_standardise_of_equal_features_is_zero_and_finite():
  x = jnp.full((2, 4), 7.0)
  value, gradient = jax.value_and_grad(lambda x: standardise(x).sum())(x)
  assert value == 0
  assert jnp.isfinite(gradient).all()


def test_variance_does_not_cancel():
  x = 1000 + jnp.array([[0.0, 0.25, 0.5, 0.75]])
  expected = slow_standardise(x, 1e-12)
  np.testing.assert_allclose(standardise(x), expected, rtol=1e-4)


def test_layer_norm_scales_and_shifts():
  params = {'scale': jnp.array([2.0, -3.0]), 'bias': jnp.array([0.5, 1.0])}
  x = jnp.array([[1.0, 3.0], [9.0, 5.0]], jnp.bfloat16)
  y = LayerNorm().apply({'params': params}, x)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, [[-1.5, -2.0], [2.5, 4.0]], rtol=1e-6)


def test_gelu_and_its_derivative():
  x = np.array([-30.0, -6.0, -3.0, -1.0, -0.1, 0.0, 0.3, 1.0, 4.0, 30.0])
  y, slope = jax.vmap(jax.value_and_grad(gelu))(x.astype(np.float32))
  expected = [slow_gelu(value) for value in x]
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  change = [slow_gelu(value + 1e-5) - slow_gelu(value - 1e-5) for value in x]
  np.testing.assert_allclose(slope, np.array(change) / 2e-5, atol=1e-5)


def test_derivatives_agree_forward_and_backward():
  x = jnp.array([[0.3, -1.2, 0.8]])
  check_grads(jax.jit(gelu), (x,), order=1, modes=['fwd', 'rev'], rtol=1e-2)
  check_grads(
    jax.jit(standardise), (x,), order=1, modes=['fwd', 'rev'], rtol=1e-2
  )
