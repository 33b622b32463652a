"""The losses over eight devices equal those of the whole batch on one."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from adaptssr_jax import losses

DEVICES, BATCH, DIM = 8, 16, 4
# Two or more kinds of lambda, of negatives, and of block sizes.
SETTINGS = [
  {'fusion': 'adaptive'},
  {'fusion': 'batch_mean', 'hard_negatives': False},
  {'fusion': 'adaptive', 'block_size': 1},
  {'fusion': 'batch_mean', 'hard_negatives': False, 'block_size': 1},
  {'form': 'list', 'temperature': 0.2, 'block_size': 1},
]
# Devices hold 0, 1 or 2 unmasked users.
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], bool)
SPLIT = PartitionSpec('users')


def loss(offset, inputs, where, axis_name, settings):
  """The loss of an encoder that only adds its parameter to the inputs."""
  users = inputs + offset
  return losses.adaptssr_loss(
    users, where=where, axis_name=axis_name, **settings
  )


def values_and_gradients(offset, inputs, where, number=5, axis_name=None):
  """Loss and gradient of the parameter, for the first `number` of SETTINGS."""
  results = []
  for settings in SETTINGS[:number]:
    value, gradient = jax.value_and_grad(loss)(
      offset, inputs, where, axis_name, settings
    )
    if axis_name is not None:
      gradient = jax.lax.pmean(gradient, axis_name)
    results.append((value, gradient))
  return results


# Compiled once for all tests with the same arguments.
on_one = jax.jit(values_and_gradients, static_argnums=3)


def on_pmap(function, offset, inputs, where):
  """Shards users over the devices, and checks that all results agree."""
  split = np.moveaxis(np.reshape(inputs, (2, 2, DEVICES, -1, DIM)), 2, 0)
  where = where.reshape(DEVICES, -1)
  mapped = jax.pmap(function, 'users', in_axes=(None, 0, 0))
  results = mapped(offset, split, where)
  for leaf in jax.tree.leaves(results):
    np.testing.assert_allclose(leaf, leaf[:1].repeat(DEVICES, 0), rtol=1e-5)
  return jax.tree.map(lambda x: x[0], results)


def on_shard_map(function, offset, inputs, where, check_vma=True):
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
  return jax.jit(mapped)(offset, inputs, where)


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(2, 2, BATCH, DIM)).astype(np.float32)
  inputs += inputs[:1, :1]
  return rng.normal(size=DIM).astype(np.float32)[None, None, None], inputs


@pytest.mark.parametrize(
  ('mapped', 'where', 'number'),
  [
    (on_pmap, WHERE, 5),
    (on_shard_map, WHERE, 5),
    (functools.partial(on_shard_map, check_vma=False), WHERE, 2),
    (on_shard_map, None, 2),
  ],
  ids=['pmap', 'shard_map', 'shard_map_unchecked', 'all_users'],
)
def test_loss_and_gradient_are_those_of_the_whole_batch(
  mapped, where, number, data
):
  # Computes all five settings, so that tests with the same `where` share it.
  whole = on_one(*data, where, 2 if where is None else 5)[:number]
  function = functools.partial(
    values_and_gradients, number=number, axis_name='users'
  )
  split = mapped(function, *data, where)
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


def of_each(users, where, axis_name=None):
  """Losses per user, and both kinds of lambda."""
  shared = {'where': where, 'axis_name': axis_name}
  each = losses.adaptssr_loss(users, reduce_fn=None, **shared)
  return each, [
    losses.augmentation_weight(users, fusion=fusion, **shared)
    for fusion in ('adaptive', 'batch_mean')
  ]


@pytest.mark.parametrize('check_vma', [True, False])
def test_losses_per_user_are_local_and_weights_of_the_whole_batch(
  data, check_vma
):
  _, users = data
  mapped = jax.shard_map(
    functools.partial(of_each, axis_name='users'),
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(PartitionSpec(None, None, 'users'), SPLIT),
    out_specs=(SPLIT, [SPLIT, PartitionSpec()]),
    check_vma=check_vma,
  )
  each, weights = jax.jit(mapped)(users, WHERE)
  expected, expected_weights = jax.jit(of_each)(users, WHERE)
  np.testing.assert_allclose(each, expected, rtol=1e-5)
  for weight, wanted in zip(weights, expected_weights, strict=True):
    # One minus a mean near one has the rounding error of 1.
    np.testing.assert_allclose(weight, wanted, rtol=0, atol=1e-6)
