"""The losses over eight devices equal those of the whole batch on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from adaptssr_jax import losses

DEVICES, BATCH, FEATURES, DIM = 8, 16, 3, 4
SETTINGS = [
  {'fusion': 'adaptive'},
  {'fusion': 'batch_mean'},
  {'fusion': 0.3},
  {'fusion': 'batch_mean', 'hard_negatives': False},
  {'fusion': 'adaptive', 'block_size': 3},
  {'fusion': 'batch_mean', 'hard_negatives': False, 'block_size': 3},
  {'form': 'list', 'temperature': 0.2},
  {'form': 'list', 'temperature': 0.2, 'block_size': 3},
  {'smooth': 0.1, 'temperature': 0.5, 'block_size': 3},
]
# Devices hold 0, 1 or 2 users that count.
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], bool)
SPLIT = PartitionSpec('users')


def make_users(matrix, inputs):
  """A stand-in for an encoder: [2, 2, batch, features] -> [2, 2, batch, dim]"""
  return jnp.tanh(inputs @ matrix)


def loss(matrix, inputs, where, axis_name, settings):
  users = make_users(matrix, inputs)
  return losses.adaptssr_loss(
    users, where=where, axis_name=axis_name, **settings
  )


def values_and_gradients(matrix, inputs, where, axis_name=None):
  """For all settings at once: the loss and the gradient of a parameter."""
  results = []
  for settings in SETTINGS:
    value, gradient = jax.value_and_grad(loss)(
      matrix, inputs, where, axis_name, settings
    )
    if axis_name is not None:
      gradient = jax.lax.pmean(gradient, axis_name)
    results.append((value, gradient))
  return results


# Of which two tests of the same arguments make one program.
on_one = jax.jit(values_and_gradients)


def on_pmap(function, matrix, inputs, where):
  """Splits users over the devices, and checks that these agree."""
  split = np.moveaxis(np.reshape(inputs, (2, 2, DEVICES, -1, FEATURES)), 2, 0)
  if where is not None:
    where = where.reshape(DEVICES, -1)
  mapped = jax.pmap(function, 'users', in_axes=(None, 0, 0))
  results = mapped(matrix, split, where)
  for leaf in jax.tree.leaves(results):
    np.testing.assert_allclose(leaf, leaf[:1].repeat(DEVICES, 0), rtol=1e-5)
  return jax.tree.map(lambda x: x[0], results)


def on_shard_map(function, matrix, inputs, where, check_vma):
  mapped = jax.shard_map(
    function,
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(
      PartitionSpec(),
      PartitionSpec(None, None, 'users'),
      PartitionSpec() if where is None else SPLIT,
    ),
    out_specs=PartitionSpec(),
    check_vma=check_vma,
  )
  return jax.jit(mapped)(matrix, inputs, where)


MAPS = {
  'pmap': on_pmap,
  'shard_map': functools.partial(on_shard_map, check_vma=True),
  'shard_map_unchecked': functools.partial(on_shard_map, check_vma=False),
}


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(2, 2, BATCH, FEATURES)).astype(np.float32)
  inputs += inputs[:1, :1]
  return rng.normal(size=(FEATURES, DIM)).astype(np.float32), inputs


@pytest.mark.parametrize(
  ('name', 'where'),
  [(name, WHERE) for name in MAPS] + [('shard_map', None)],
  ids=[*MAPS, 'all_users'],
)
def test_loss_and_gradient_are_those_of_the_whole_batch(name, where, data):
  whole = on_one(*data, where)
  function = functools.partial(values_and_gradients, axis_name='users')
  split = MAPS[name](function, *data, where)
  for (value, gradient), (expected, expected_gradient) in zip(
    split, whole, strict=True
  ):
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(
      gradient,
      expected_gradient,
      rtol=1e-5,
      atol=1e-5 * np.abs(expected_gradient).max(),
    )


@pytest.mark.parametrize('check_vma', [True, False])
def test_losses_per_user_are_the_local_ones(data, check_vma):
  matrix, inputs = data
  users = make_users(matrix, inputs)
  each = functools.partial(losses.adaptssr_loss, reduce_fn=None)
  mapped = jax.shard_map(
    lambda users, where: each(users, where=where, axis_name='users'),
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(PartitionSpec(None, None, 'users'), SPLIT),
    out_specs=SPLIT,
    check_vma=check_vma,
  )
  np.testing.assert_allclose(
    jax.jit(mapped)(users, WHERE), each(users, where=WHERE), rtol=1e-5
  )


@pytest.mark.parametrize('fusion', ['batch_mean', 'adaptive'])
def test_weight_is_that_of_the_whole_batch(data, fusion):
  matrix, inputs = data
  users = make_users(matrix, inputs)
  weight = functools.partial(losses.augmentation_weight, fusion=fusion)
  mapped = jax.shard_map(
    lambda users, where: weight(users, where=where, axis_name='users'),
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(PartitionSpec(None, None, 'users'), SPLIT),
    out_specs=SPLIT if fusion == 'adaptive' else PartitionSpec(),
  )
  np.testing.assert_allclose(
    # One minus a mean near one: the rounding is that of 1.
    jax.jit(mapped)(users, WHERE),
    weight(users, where=WHERE),
    rtol=0,
    atol=1e-6,
  )
