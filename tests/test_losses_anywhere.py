"""Losses in the programs of others: no users, constants, strict settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import (
  adaptssr_loss,
  coles_loss,
  diagnostics,
  listwise_ranking_loss,
  metrics,
  mpr_loss,
  nt_xent_loss,
)
from adaptssr_jax.training.step import gradients

USERS = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
EVERY = {
  'pairs': adaptssr_loss,
  'pairs in blocks': functools.partial(adaptssr_loss, block_size=2),
  'all pairs': functools.partial(
    adaptssr_loss, hard_negatives=False, fusion='batch_mean'
  ),
  'list': functools.partial(adaptssr_loss, form='list', block_size=2),
  'nt_xent': lambda users, **args: nt_xent_loss(users[:, 0], **args),
  'coles': lambda users, **args: coles_loss(users[:, 0], **args),
}


@pytest.mark.parametrize('loss', EVERY.values(), ids=EVERY)
def test_a_batch_without_users_is_zero(loss):
  nobody = USERS[:, :, :0]
  for where in (None, np.ones(0, bool)):
    value, grad = jax.value_and_grad(loss)(nobody, where=where)
    assert (value, grad.shape) == (0, nobody.shape)
    assert loss(nobody, where=where, reduce_fn=None).shape == (0,)


def test_diagnostics_of_nobody_are_empty():
  nobody = USERS[:, :, :0]
  found = diagnostics.view_similarities(nobody)
  assert {x.shape for x in found} == {(0,)}


def test_settings_may_be_constants_of_a_program():
  half = jnp.float32(0.5)
  similarities = (np.ones((3, 1), np.float32),) * 3
  for loss, args, setting in (
    (adaptssr_loss, (USERS,), 'temperature'),
    (adaptssr_loss, (USERS,), 'fusion'),
    (nt_xent_loss, (USERS[:, 0],), 'temperature'),
    (functools.partial(mpr_loss, weight=1), similarities, 'temperature'),
    (
      functools.partial(listwise_ranking_loss, weight=1),
      similarities,
      'temperature',
    ),
  ):
    constant = functools.partial(loss, **{setting: half})
    assert jax.eval_shape(jax.jit(constant), *args).shape == ()
  negative = functools.partial(adaptssr_loss, temperature=-half)
  with pytest.raises(ValueError, match='temperature must be positive'):
    jax.eval_shape(jax.jit(negative), USERS)


def test_no_dtype_is_promoted():
  labels = jnp.array([0, 1, 1])
  with jax.numpy_dtype_promotion('strict'):
    found = [loss(USERS) for loss in EVERY.values()]
    found += [
      diagnostics.view_similarities(USERS),
      metrics.macro_f1(labels, labels, num_classes=3),
      metrics.ndcg(labels + 1, k=2),
      metrics.reciprocal_rank(labels + 1, k=2),
    ]
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('f4')}


def test_a_step_is_float32_whatever_the_default():
  def loss(params, batch, key):
    total = jnp.sum(params * batch['x'])
    return total, {'loss': (total, jnp.ones((), jnp.float32))}

  for context in (jax.numpy_dtype_promotion('strict'), jax.enable_x64(True)):
    with context:
      one = jnp.ones(2, jnp.float32)
      found = gradients(loss, one, {'x': one}, jax.random.key(0), None)
    assert found[1]['skipped'].dtype == jnp.float32
