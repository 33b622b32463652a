"""The layers of the encoder against plain formulas."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.layers import (
  Dense,
  LayerNorm,
  gelu,
  masked_softmax,
)


def slow_gelu(x):
  return x * (1 + math.erf(x / math.sqrt(2))) / 2


def test_layer_norm_does_not_cancel():
  """The features differ little, compared with their mean."""
  x = np.array([[1000.0, 1000.25, 1000.5, 1000.75], [7.0, 7.0, 7.0, 7.0]])
  expected = np.stack([(x[0] - x[0].mean()) / x[0].std(), np.zeros(4)])
  params = {'scale': jnp.ones(4), 'bias': jnp.zeros(4)}

  def normalised(x):
    return LayerNorm().apply({'params': params}, x)

  x = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(normalised(x), expected, rtol=1e-4)
  gradient = jax.grad(lambda x: jnp.sum(normalised(x) ** 3))(x)
  chex.assert_tree_all_finite(gradient)


def test_gelu_and_its_derivative():
  x = np.array([-30.0, -6.0, -3.0, -1.0, -0.1, 0.0, 0.3, 1.0, 4.0, 30.0])
  y, slope = jax.vmap(jax.value_and_grad(gelu))(x.astype(np.float32))
  expected = [slow_gelu(value) for value in x]
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  change = [slow_gelu(value + 1e-5) - slow_gelu(value - 1e-5) for value in x]
  np.testing.assert_allclose(slope, np.array(change) / 2e-5, atol=1e-5)


def test_masked_softmax():
  scores = jnp.array([[2.0, 2.0, 9.0], [1e30, -1e30, 0.0], [1.0, 2.0, 3.0]])
  where = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
  weights = masked_softmax(scores.astype(jnp.bfloat16), where=where)
  chex.assert_type(weights, jnp.float32)
  np.testing.assert_array_equal(weights, [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]])
  gradient = jax.jit(jax.jacobian(masked_softmax))(scores, where=where)
  chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize(
  ('dtype', 'features'), [('float32', 4), ('bfloat16', 2)]
)
def test_dense_is_affine(dtype, features):
  rng = np.random.default_rng(4)
  # Small integers, which are exact in bfloat16.
  x = rng.integers(-3, 4, (2, 5, 3)).astype(np.float32)
  dy = rng.integers(-2, 3, (2, 5, features)).astype(np.float32)
  kernel, bias = rng.integers(-3, 4, (3, features)), np.arange(features)
  params = {'kernel': kernel.astype(np.float32), 'bias': bias * 1.0}
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  dense = Dense(features, dtype)

  def loss(params, x):
    y = dense.apply({'params': params}, x)
    return jnp.sum(y * dy), y

  gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  (grads, dx), y = gradient(params, jnp.asarray(x))
  chex.assert_type(y, jnp.dtype(dtype))
  np.testing.assert_array_equal(y.astype(jnp.float32), x @ kernel + bias)
  chex.assert_type((grads['kernel'], grads['bias'], dx), jnp.float32)
  np.testing.assert_array_equal(dx, dy @ kernel.T)
  np.testing.assert_array_equal(
    grads['kernel'], np.einsum('abi,abf->if', x, dy)
  )
  np.testing.assert_array_equal(grads['bias'], dy.sum(axis=(0, 1)))
