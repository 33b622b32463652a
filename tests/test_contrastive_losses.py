"""NT-Xent and the loss of CoLES, against Optax and loops over the formulas.

`test_every_loss` tests what holds of all losses of users.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptssr_jax.losses import coles_loss, nt_xent_loss
from tests.central_differences import assert_gradients_of_values

DIM = 4


def random_users(views, batch):
  users = np.random.default_rng(0).normal(size=(views, batch, DIM))
  return (users + users[:1]).astype(np.float32)


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


@jax.jit
def learned(temperature):
  def loss(temperature):
    return nt_xent_loss(random_users(2, 4), temperature=temperature)

  value, gradient = jax.value_and_grad(loss)(temperature)
  return value, [gradient]


def test_the_gradient_of_a_learned_temperature_is_that_of_the_value():
  with jax.enable_x64(True):
    assert_gradients_of_values(learned, [np.float64(0.3)])


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
