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
from jax.test_util import check_grads

from adaptssr_jax.losses import coles_loss, nt_xent_loss

DEVICES, BATCH, DIM = 8, 16, 4
# Devices hold 0, 1 or 2 users that count.
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], bool)
LOSSES = [
  functools.partial(nt_xent_loss, temperature=0.2),
  functools.partial(nt_xent_loss, temperature=0.2, block_size=3),
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


@pytest.mark.parametrize('views', [2, 3])
def test_nt_xent_is_that_of_optax(views):
  users = random_users(views, 5)
  labels = jnp.tile(jnp.arange(5), views)
  expected = jax.jit(functools.partial(optax.losses.ntxent, temperature=0.2))(
    jnp.array(users.reshape(-1, DIM)), labels
  )
  for block_size in (None, 2, 9):
    loss = nt_xent_loss(users, temperature=0.2, block_size=block_size)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


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
  loss = functools.partial(nt_xent_loss, temperature=0.7, similarity='dot')
  np.testing.assert_allclose(
    loss(jnp.array(users, jnp.float32), reduce_fn=None), expected, rtol=1e-5
  )


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
  # Of any scale.
  loss = coles_loss(
    jnp.array(7 * users, jnp.float32),
    margin=1.2,
    num_negatives=count,
    reduce_fn=None,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_padding_changes_nothing_and_gets_no_gradient():
  users = random_users()
  garbage = jnp.where(WHERE[:, None], users, jnp.nan)
  gradient = jax.jit(jax.jacrev(every_loss))
  np.testing.assert_allclose(
    every_loss(garbage, WHERE), every_loss(users[:, WHERE]), rtol=1e-5
  )
  found = gradient(garbage, WHERE)
  assert np.isfinite(found).all()
  assert not found[:, :, ~WHERE].any()
  nobody = jnp.zeros(BATCH, bool)
  assert not every_loss(garbage, nobody).any()
  assert not gradient(garbage, nobody).any()


@pytest.mark.parametrize('where', [None, WHERE], ids=['all', 'where'])
def test_eight_devices_are_one(where):
  matrix = np.random.default_rng(1).normal(size=(DIM, 3)).astype(np.float32)

  def losses_of(matrix, inputs, where, axis_name=None):
    return every_loss(jnp.tanh(inputs @ matrix), where, axis_name)

  def both(matrix, inputs, where):
    function = functools.partial(losses_of, axis_name='users')
    gradient = jax.jacrev(function)(matrix, inputs, where)
    return function(matrix, inputs, where), jax.lax.pmean(gradient, 'users')

  inputs = random_users()
  split = np.moveaxis(inputs.reshape(2, DEVICES, -1, DIM), 1, 0)
  rows = None if where is None else where.reshape(DEVICES, -1)
  found = jax.pmap(both, 'users', in_axes=(None, 0, 0))(matrix, split, rows)
  whole = jax.jit(losses_of)(matrix, inputs, where)
  gradient = jax.jit(jax.jacrev(losses_of))(matrix, inputs, where)
  bounds = {'rtol': 1e-4, 'atol': 1e-5 * np.abs(gradient).max()}
  for device in range(DEVICES):
    # The same on each.
    np.testing.assert_allclose(found[0][device], whole, rtol=1e-5)
    np.testing.assert_allclose(found[1][device], gradient, **bounds)


@pytest.mark.parametrize('check_vma', [True, False])
def test_under_shard_map_too(check_vma):
  mapped = jax.shard_map(
    functools.partial(every_loss, axis_name='users'),
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(PartitionSpec(None, 'users'), PartitionSpec('users')),
    out_specs=PartitionSpec(),
    check_vma=check_vma,
  )
  users = jnp.array(random_users())
  np.testing.assert_allclose(
    jax.jit(mapped)(users, WHERE), every_loss(users, WHERE), rtol=1e-5
  )


@pytest.mark.parametrize(
  'users',
  [
    np.zeros((2, 3, DIM)),
    np.ones((2, 3, DIM)),
    1e30 * random_users(2, 3),
    # A batch of one has no negatives.
    random_users(2, 1),
  ],
  ids=['zeros', 'alike', 'large', 'one'],
)
def test_gradients_are_finite(users):
  for loss in LOSSES:
    if users.max() > 1e9 and loss.keywords.get('similarity') == 'dot':
      continue
    found = jax.jit(jax.value_and_grad(loss))(jnp.array(users, jnp.float32))
    assert all(np.isfinite(leaf).all() for leaf in found)
    if users.shape[1] == 1 and loss.func is nt_xent_loss:
      assert not found[0]


def test_gradients_are_numerical_ones():
  with jax.enable_x64(True):
    users = jnp.array(random_users(2, 4), jnp.float64)
    for loss in LOSSES:
      check_grads(jax.jit(loss), (users,), order=1, modes='rev', rtol=1e-5)

    def learned(temperature):
      return nt_xent_loss(users, temperature=temperature)

    check_grads(jax.jit(learned), (0.3,), order=1, modes='rev', rtol=1e-5)


def test_vmap_is_a_loop_and_the_order_of_users_changes_nothing():
  users = jnp.array([random_users(seed=seed) for seed in range(2)])
  looped = jnp.stack([every_loss(each) for each in users])
  chex.assert_trees_all_close(jax.vmap(every_loss)(users), looped, rtol=1e-5)
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
