"""The loss in blocks of negatives is the loss, in less memory."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_losses import random_users

from adaptssr_jax import losses

HARD = pytest.mark.parametrize('hard_negatives', [True, False])


def value_and_gradient(**settings):
  loss = functools.partial(losses.adaptssr_loss, **settings)
  return jax.jit(jax.value_and_grad(loss))


@HARD
@pytest.mark.parametrize('block_size', [1, 3, 5, 100])
def test_any_block_size_gives_the_same(block_size, hard_negatives):
  users = jnp.array(random_users())
  where = np.array([True, False, True, True, True])
  value, gradient = value_and_gradient(
    hard_negatives=hard_negatives, where=where, block_size=block_size
  )(users)
  expected, expected_gradient = value_and_gradient(
    hard_negatives=hard_negatives, where=where
  )(users)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@HARD
def test_gradients_in_blocks_are_numerical_ones(hard_negatives):
  with jax.enable_x64(True):
    loss = functools.partial(
      losses.adaptssr_loss,
      fusion=0.3,
      hard_negatives=hard_negatives,
      block_size=2,
    )
    check_grads(jax.jit(loss), (jnp.array(random_users()),), order=1, rtol=1e-6)


@HARD
def test_a_user_without_negatives(hard_negatives):
  users = jnp.array(random_users())
  where = np.arange(5) == 3
  value, gradient = value_and_gradient(
    hard_negatives=hard_negatives, where=where, block_size=2
  )(users)
  alone = losses.adaptssr_loss(users[:, :, 3:4], hard_negatives=hard_negatives)
  np.testing.assert_allclose(value, alone, rtol=1e-5)
  assert np.all(np.isfinite(gradient))
  assert np.abs(gradient[:, :, 3]).max() > 1e-3


def test_of_equally_hard_negatives_the_first_gets_the_gradient():
  users = jnp.array(random_users(4))
  # The four vectors of three users are one vector: a twelvefold tie.
  users = users.at[:, :, 1:].set(jnp.array([1.0, -2.0, 0.5, 1.0]))
  # Only the first user's loss: the others are what it is compared with.
  each = functools.partial(losses.adaptssr_loss, fusion=0.3, reduce_fn=None)
  gradients = [
    jax.grad(lambda users, size=size: each(users, block_size=size)[0])(users)
    for size in (None, 2)
  ]
  split, first = (np.linalg.norm(gradient, axis=-1) for gradient in gradients)
  np.testing.assert_allclose(split[:, :, 1:], split[0, 0, 1], rtol=1e-5)
  assert first[0, 0, 1] > 1e-3
  np.testing.assert_allclose(first[0, 0, 1], 12 * split[0, 0, 1], rtol=1e-5)
  assert np.count_nonzero(first[:, :, 1:]) == 1
  # What the anchor itself gets is the same.
  own = [gradient[:, :, 0] for gradient in gradients]
  np.testing.assert_allclose(*own, atol=1e-6)


@HARD
def test_blocks_under_vmap(hard_negatives):
  loss = functools.partial(
    losses.adaptssr_loss, hard_negatives=hard_negatives, block_size=2
  )
  loss = jax.jit(loss)
  batches = jnp.array([random_users(seed=seed) for seed in range(2)])
  looped = [loss(users) for users in batches]
  np.testing.assert_allclose(jax.vmap(loss)(batches), looped, rtol=1e-5)


@pytest.mark.parametrize('block_size', [0, -3])
def test_refuses_empty_blocks(block_size):
  with pytest.raises(ValueError, match='block_size must be at least 1 or None'):
    inspect.unwrap(losses.adaptssr_loss)(
      jnp.array(random_users()), block_size=block_size
    )
