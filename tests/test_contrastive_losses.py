"""NT-Xent and the loss of CoLES, against Optax and loops over the formulas."""

import functools
import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from adaptssr_jax.losses import coles_loss, nt_xent_loss
from tests.central_differences import assert_gradients_of_values

DEVICES, BATCH, DIM = 8, 16, 4
# Devices hold 0, 1 or 2 unmasked users.
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], bool)
LOSSES = [
  functools.partial(nt_xent_loss, temperature=0.2),
  functools.partial(nt_xent_loss, temperature=0.2, block_size=1),
  functools.partial(nt_xent_loss, similarity='dot'),
  functools.partial(coles_loss, margin=1.0, num_negatives=3),
]


def random_users(views=2, batch=BATCH, seed=0):
  users = np.random.default_rng(seed).normal(size=(views, batch, DIM))
  return (users + users[:1]).astype(np.float32)


@functools.partial(jax.jit, static_argnames='axis_name')
def every_loss(users, where=None, axis_name=None):
  shared = {'where': where, 'axis_name': axis_name}
  return jnp.stack([loss(users, **shared) for loss in LOSSES])


@jax.jit
def every_loss_and_gradient(users, where):
  """Every loss, and its gradient with respect to the users."""
  gradient, losses = jax.jacrev(twice, has_aux=True)(users, where)
  return losses, gradient


def twice(users, where, axis_name=None):
  """Every loss twice: to be differentiated, and as an auxiliary result."""
  return (every_loss(users, where, axis_name),) * 2


@pytest.mark.parametrize('views', [2, 3])
def test_nt_xent_is_that_of_optax(views):
  users = random_users(views, 5)
  labels = jnp.tile(jnp.arange(5), views)
  expected = jax.jit(functools.partial(optax.losses.ntxent, temperature=0.2))(
    jnp.array(users.reshape(-1, DIM)), labels
  )

  @jax.jit
  def in_blocks(users):
    loss = functools.partial(nt_xent_loss, users, temperature=0.2)
    return [loss(block_size=size) for size in (None, 2, 9)]

  np.testing.assert_allclose(in_blocks(users), [expected] * 3, rtol=1e-5)


def test_nt_xent_of_products_is_its_formula():
  users = random_users(3, 4).astype(float)
  each = []
  for user, (a, b) in itertools.product(
    range(4), itertools.permutations(range(3), 2)
  ):
    anchor = users[a, user]
    others = np.delete(users, user, axis=1).reshape(-1, DIM) @ anchor / 0.7
    own = users[b, user] @ anchor / 0.7
    each.append(np.log(np.exp(own) + np.exp(others).sum()) - own)
  expected = np.reshape(each, (4, 6)).mean(axis=1)
  settings = {'temperature': 0.7, 'similarity': 'dot', 'reduce_fn': None}
  loss = jax.jit(functools.partial(nt_xent_loss, **settings))
  np.testing.assert_allclose(loss(np.float32(users)), expected, rtol=1e-5)


@pytest.mark.parametrize('count', [1, 3, 50])
def test_coles_is_its_formula(count):
  users = random_users(3, 4).astype(float)
  users /= np.linalg.norm(users, axis=-1, keepdims=True)
  expected = np.zeros(4)
  for user in range(4):
    for a, b in itertools.combinations(range(3), 2):
      expected[user] += ((users[a, user] - users[b, user]) ** 2).sum()
    others = np.delete(users, user, axis=1).reshape(-1, DIM)
    for a in range(3):
      far = np.sort(np.linalg.norm(others - users[a, user], axis=1))
      expected[user] += (np.maximum(0, 1.2 - far[:count]) ** 2).sum()
  settings = {'margin': 1.2, 'num_negatives': count, 'reduce_fn': None}
  loss = jax.jit(functools.partial(coles_loss, **settings))
  # The scale of users does not matter.
  np.testing.assert_allclose(loss(np.float32(7 * users)), expected, rtol=1e-5)


def test_padding_changes_nothing_and_gets_no_gradient():
  users = random_users()
  garbage = jnp.where(WHERE[:, None], users, jnp.nan)
  losses, gradients = every_loss_and_gradient(garbage, WHERE)
  np.testing.assert_allclose(losses, every_loss(users[:, WHERE]), rtol=1e-5)
  assert np.isfinite(gradients).all()
  assert not gradients[:, :, ~WHERE].any()
  losses, gradients = every_loss_and_gradient(garbage, np.zeros(BATCH, bool))
  assert not losses.any()
  assert not gradients.any()


def test_eight_devices_are_one():
  """The encoder only adds its parameter to the inputs."""
  offset = np.random.default_rng(1).normal(size=DIM).astype(np.float32)

  def both(offset, inputs, where):
    def of_users(offset):
      return twice(inputs + offset[None, None], where, axis_name='users')

    gradient, losses = jax.jacrev(of_users, has_aux=True)(offset)
    return losses, jax.lax.pmean(gradient, 'users')

  inputs = random_users()
  split = np.moveaxis(inputs.reshape(2, DEVICES, -1, DIM), 1, 0)
  rows = WHERE.reshape(DEVICES, -1)
  found = jax.pmap(both, 'users', in_axes=(None, 0, 0))(offset, split, rows)
  whole, of_users = every_loss_and_gradient(inputs + offset, WHERE)
  # The parameter is added to all users, so that it gets the sum of gradients.
  gradient = of_users.sum(axis=(1, 2))
  bounds = {'rtol': 1e-4, 'atol': 1e-5 * np.abs(gradient).max()}
  for device in range(DEVICES):
    # All devices have the same loss.
    np.testing.assert_allclose(found[0][device], whole, rtol=1e-5)
    np.testing.assert_allclose(found[1][device], gradient, **bounds)


@pytest.mark.parametrize(
  ('where', 'check_vma'), [(WHERE, True), (None, False)], ids=['where', 'all']
)
def test_under_shard_map_too(where, check_vma):
  split = PartitionSpec(None, 'users')
  mapped = jax.shard_map(
    functools.partial(every_loss, axis_name='users'),
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(split, PartitionSpec(*split[1:] if where is not None else ())),
    out_specs=PartitionSpec(),
    check_vma=check_vma,
  )
  users = jnp.array(random_users())
  np.testing.assert_allclose(
    jax.jit(mapped)(users, where), every_loss(users, where), rtol=1e-5
  )


@pytest.mark.parametrize(
  'users',
  [
    np.zeros((2, 3, DIM)),
    np.ones((2, 3, DIM)),
    # A batch of one has no negatives.
    random_users(2, 1),
  ],
  ids=['zeros', 'alike', 'one'],
)
def test_gradients_are_finite(users):
  where = np.ones(users.shape[1], bool)
  found = every_loss_and_gradient(jnp.array(users, jnp.float32), where)
  assert all(np.isfinite(leaf).all() for leaf in found)
  if users.shape[1] == 1:
    for loss, value in zip(LOSSES, found[0], strict=True):
      assert loss.func is not nt_xent_loss or not value


def test_gradients_of_large_users_are_finite():
  for loss in LOSSES:
    if loss.keywords.get('similarity') != 'dot':
      compute = jax.jit(jax.value_and_grad(loss))
      value, gradient = compute(1e30 * random_users(2, 3))
      assert np.isfinite(value)
      assert np.isfinite(gradient).all()


@jax.jit
def learned(temperature):
  def loss(temperature):
    return nt_xent_loss(random_users(2, 4), temperature=temperature)

  value, gradient = jax.value_and_grad(loss)(temperature)
  return value, [gradient]


def test_gradients_are_those_of_the_values():
  def by_users(users):
    values, gradients = every_loss_and_gradient(users, np.ones(4, bool))
    return values, [gradients]

  with jax.enable_x64(True):
    users = random_users(2, 4).astype(float)
    assert_gradients_of_values(by_users, [users])
    assert_gradients_of_values(learned, [np.float64(0.3)])


def test_vmap_is_a_loop_and_the_order_of_users_changes_nothing():
  users = jnp.array([random_users(seed=seed) for seed in range(2)])
  looped = jnp.stack([every_loss(each) for each in users])
  mapped = jax.jit(jax.vmap(every_loss))(users)
  chex.assert_trees_all_close(mapped, looped, rtol=1e-5)
  order = np.random.default_rng(2).permutation(BATCH)
  np.testing.assert_allclose(
    every_loss(users[0][:, order]), looped[0], rtol=1e-5
  )


@pytest.mark.parametrize(
  ('loss', 'words', 'settings'),
  [
    (nt_xent_loss, 'similarity must be', {'similarity': 'distance'}),
    (nt_xent_loss, 'temperature must be positive', {'temperature': 0.0}),
    (nt_xent_loss, 'block_size must be at least 1', {'block_size': 0}),
    (coles_loss, 'margin and num_negatives', {'margin': 0.0}),
    (coles_loss, 'margin and num_negatives', {'num_negatives': 0}),
  ],
)
def test_bad_settings_are_refused(loss, words, settings):
  with pytest.raises(ValueError, match=words):
    loss(jnp.ones((2, 3, DIM)), **settings)


@pytest.mark.parametrize('shape', [(1, 3, DIM), (2, 2, 3, DIM), (3, DIM)])
@pytest.mark.parametrize('loss', [nt_xent_loss, coles_loss])
def test_bad_shapes_are_refused(loss, shape):
  with pytest.raises(ValueError, match='users must be'):
    inspect.unwrap(loss)(jnp.ones(shape))
