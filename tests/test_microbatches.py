"""Computing in microbatches equals computing at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from adaptssr_jax.encoder.dropout import dropout, row_seeds
from adaptssr_jax.ops.microbatches import in_chunks, in_microbatches, map_chunks
from tests.bounds import assert_same_to_rounding

ROWS, LENGTH, DIM = 16, 6, 4
ITEMS = jnp.array([[1 + (n + t) % 9 if t < n % 7 else 0 for t in range(LENGTH)]
                   for n in range(ROWS)])  # fmt: skip
KEYS = jax.random.split(jax.random.key(1), ROWS)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  shapes = {'table': (10, DIM), 'map': (DIM, DIM)}
  params = {name: 0.1 * rng.normal(size=x) for name, x in shapes.items()}
  return jax.tree.map(jnp.float32, params)


def encode_with(params, items, keys):
  """A quick encoder with dropout."""
  states = dropout(
    row_seeds(keys, draws=1)[:, 0], params['table'][items], rate=0.5
  )
  return jnp.tanh(states.sum(axis=1) @ params['map'])


def users_of(params, items, keys, size=None):
  encode = functools.partial(encode_with, params)
  return in_microbatches(encode, items, keys, size=size)


def loss(params, items, keys, size=None):
  """A loss of all pairs of users."""
  users = users_of(params, items, keys, size)
  return jnp.sum(jnp.tanh(10 * users @ users.T)), users


@functools.partial(jax.jit, static_argnames='size')
def users_and_gradients(params, items, keys, size=None):
  return jax.grad(loss, has_aux=True)(params, items, keys, size)


assert_close = functools.partial(assert_same_to_rounding, least=1e-3)


@pytest.mark.parametrize('size', [4, 7, ROWS], ids=['even', 'filled up', 'one'])
def test_users_and_gradients_are_those_of_all_rows(size, params):
  plain = users_and_gradients(params, ITEMS, KEYS)
  assert_close(users_and_gradients(params, ITEMS, KEYS, size), plain)
  assert all(jnp.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(plain))
  other = users_and_gradients(params, ITEMS, KEYS[::-1])
  assert jnp.abs(plain[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize('check_vma', [True, False])
def test_devices_have_microbatches_of_their_own(check_vma, params):
  def both(params, items, keys):
    users = functools.partial(users_of, items=items, keys=keys, size=3)
    gradient = jax.grad(lambda params: users(params).sum())(params)
    if not check_vma:
      gradient = jax.lax.psum(gradient, 'users')
    return gradient, users(params)

  split = PartitionSpec('users')
  mapped = jax.shard_map(
    both,
    mesh=Mesh(jax.devices()[:2], ('users',)),
    in_specs=(PartitionSpec(), split, split),
    out_specs=(PartitionSpec(), split),
    check_vma=check_vma,
  )

  def whole(params):
    users = users_of(params, ITEMS, KEYS)
    return users.sum(), users

  expected = jax.jit(jax.grad(whole, has_aux=True))(params)
  assert_close(jax.jit(mapped)(params, ITEMS, KEYS), expected)


def test_under_pmap(params):
  users = jax.pmap(functools.partial(users_of, size=3), in_axes=(None, 0, 0))
  split = users(params, ITEMS.reshape(2, 8, LENGTH), KEYS.reshape(2, 8))
  _, whole = users_and_gradients(params, ITEMS, KEYS)
  assert_close(split.reshape(ROWS, -1), whole)


def test_any_structure_of_rows():
  def encode(left, right):
    return {'sum': left['a'] + right, 'key': jax.random.key_data(left['key'])}

  rows = {'a': jnp.arange(5), 'key': KEYS[:5]}
  mapped = jax.jit(functools.partial(in_microbatches, encode, size=2))
  done = mapped(rows, jnp.ones(5))
  np.testing.assert_array_equal(done['sum'], np.arange(5) + 1)
  np.testing.assert_array_equal(done['key'], jax.random.key_data(KEYS[:5]))


def test_chunks_are_filled_up_with_zeros():
  chunks = in_chunks({'x': jnp.ones((3, 2)), 'key': KEYS[:3]}, size=2)
  np.testing.assert_array_equal(
    chunks['x'], [[[1, 1], [1, 1]], [[1, 1], [0, 0]]]
  )
  data = jax.random.key_data(chunks['key'])
  assert chunks['key'].shape == (2, 2)
  assert np.all(data[1, 1] == 0)
  assert np.all(data[1, 0] == jax.random.key_data(KEYS[2]))


def test_only_one_microbatch_is_traced():
  seen = []

  def encode(rows):
    seen.append(rows.shape)
    return rows

  mapped = functools.partial(in_microbatches, encode, size=4)
  jax.eval_shape(mapped, jnp.ones((9, 2)))
  assert set(seen) == {(4, 2)}


def test_a_gradient_computes_a_microbatch_again_unless_mapped_only():
  """Counts the `exp` in the program of a gradient, forward and backward."""

  def kept(call):
    gradient = jax.grad(lambda x: call(jnp.exp, x, size=2).sum())
    return str(jax.make_jaxpr(gradient)(jnp.ones((6, 5)))).count('= exp ')

  # Microbatches do not keep the results, and compute them again.
  assert kept(map_chunks) == 1
  assert kept(in_microbatches) == 2


@pytest.mark.parametrize('size', [0, -1])
def test_refuses_empty_microbatches(size):
  with pytest.raises(ValueError, match='size must be at least 1 or None'):
    in_microbatches(jnp.sin, jnp.ones(3), size=size)
