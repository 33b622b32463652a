"""The loss in blocks of anchors equals the loss of all at once."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import random_users

from adaptssr_jax import losses

# Blocks that divide the users, and one larger than the batch. `test_losses`
# tests blocks that do not divide them: values, gradients and vmap.
BLOCKS = (1, 100)


@jax.jit
def every_block(users, where):
  """The loss at once and in blocks, for hard and then all negatives."""
  return [
    [
      jax.value_and_grad(losses.adaptssr_loss)(
        users, where=where, hard_negatives=hard, block_size=block_size
      )
      for block_size in (None, *BLOCKS)
    ]
    for hard in (True, False)
  ]


def test_any_block_size_gives_the_same():
  users = jnp.array(random_users())
  where = np.array([True, False, True, True, True])
  for (expected, expected_gradient), *found in every_block(users, where):
    for value, gradient in found:
      np.testing.assert_allclose(value, expected, rtol=1e-5)
      np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_a_user_without_negatives():
  users = jnp.array(random_users())
  found = every_block(users, np.arange(5) == 3)
  for hard, (_, *in_blocks) in zip((True, False), found, strict=True):
    loss = jax.jit(functools.partial(losses.adaptssr_loss, hard_negatives=hard))
    alone = loss(users[:, :, 3:4])
    for value, gradient in in_blocks:
      np.testing.assert_allclose(value, alone, rtol=1e-5)
      assert np.all(np.isfinite(gradient))
      assert np.abs(gradient[:, :, 3]).max() > 1e-3


@jax.jit
def gradients_of_the_first(users):
  """Gradients of the first user's loss, at once and in blocks."""
  each = functools.partial(losses.adaptssr_loss, fusion=0.3, reduce_fn=None)
  return [
    jax.grad(lambda users, size=size: each(users, block_size=size)[0])(users)
    for size in (None, 2)
  ]


def test_of_equally_hard_negatives_the_first_gets_the_gradient():
  users = jnp.array(random_users(4))
  # All four vectors of three users are equal: a tie of twelve.
  users = users.at[:, :, 1:].set(jnp.array([1.0, -2.0, 0.5, 1.0]))
  gradients = gradients_of_the_first(users)
  split, first = (np.linalg.norm(gradient, axis=-1) for gradient in gradients)
  np.testing.assert_allclose(split[:, :, 1:], split[0, 0, 1], rtol=1e-5)
  assert first[0, 0, 1] > 1e-3
  np.testing.assert_allclose(first[0, 0, 1], 12 * split[0, 0, 1], rtol=1e-5)
  assert np.count_nonzero(first[:, :, 1:]) == 1
  # The gradients of the anchor itself are equal.
  own = [gradient[:, :, 0] for gradient in gradients]
  np.testing.assert_allclose(*own, atol=1e-6)


@pytest.mark.parametrize('block_size', [0, -3])
def test_refuses_empty_blocks(block_size):
  with pytest.raises(ValueError, match='block_size must be at least 1 or None'):
    inspect.unwrap(losses.adaptssr_loss)(
      jnp.array(random_users()), block_size=block_size
    )
