"""The user encoder: shapes, padding, pooling and dropout."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from tests.random_params import random_params

ENCODER = UserEncoder(9, max_length=6, embed_dim=8, num_layers=1, num_queries=4)
ITEMS = jnp.array([[1, 2, 3, 4], [5, 6, 10, 0], [7, 0, 0, 0], [0, 0, 0, 0]])


@pytest.fixture(scope='module')
def params():
  return random_params(ENCODER, ITEMS)


@functools.partial(jax.jit, static_argnames='encoder')
def encode(params, items, encoder=ENCODER):
  return encoder.apply({'params': params}, items)


@jax.jit
def gradients_of(params, items):
  return jax.grad(lambda params: jnp.sum(encode(params, items) ** 2))(params)


def test_defaults_and_mask_id():
  assert UserEncoder(50) == UserEncoder(
    num_items=50,
    max_length=100,
    embed_dim=64,
    num_layers=2,
    num_heads=2,
    num_queries=1,
    cosine_pooling=False,
    dropout_rate=0.1,
    dtype='float32',
    causal=False,
    readout='pooled',
  )
  assert UserEncoder(50).mask_id == 51


def test_parameter_count():
  params = jax.eval_shape(UserEncoder(50).init, jax.random.key(0), ITEMS)
  norm = 2 * 64
  attention = 4 * (64 * 64 + 64)
  feed_forward = (64 * 256 + 256) + (256 * 64 + 64)
  block = attention + feed_forward + 2 * norm
  expected = (52 + 100) * 64 + norm + 2 * block + 64
  assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_initial_values():
  encoder = UserEncoder(500, num_layers=1, num_queries=64)
  params = jax.jit(encoder.init)(jax.random.key(0), ITEMS)['params']
  for path, value in jax.tree.leaves_with_path(params):
    kind = path[-1].key
    if kind in ('bias', 'scale'):
      np.testing.assert_array_equal(value, float(kind == 'scale'))
    else:  # The standard deviation of 4096 draws or more is exact to about 1 %.
      np.testing.assert_allclose(value.std(), 0.02, rtol=0.06, err_msg=path)
      np.testing.assert_allclose(value.mean(), 0, atol=0.002, err_msg=path)
  assert jnp.abs(params['item_embedding'][0]).max() > 0.01


def test_shapes_and_jit(params):
  users = ENCODER.apply({'params': params}, np.asarray(ITEMS))
  chex.assert_shape(users, (4, 4 * 8))
  chex.assert_type(users, jnp.float32)
  chex.assert_trees_all_close(users, encode(params, ITEMS), atol=1e-6)


def test_padding_changes_nothing(params):
  users = encode(params, ITEMS)
  padded = encode(params, jnp.pad(ITEMS, ((0, 0), (0, 2))))
  chex.assert_trees_all_close(users, padded, atol=1e-6)
  alone = encode(params, ITEMS[2:3, :1])
  chex.assert_trees_all_close(users[2:3], alone, atol=1e-6)


def test_order_and_every_item_matter(params):
  users = encode(params, ITEMS)
  changed = jnp.array([[4, 3, 2, 1], [5, 6, 9, 0], [8, 0, 0, 0], [1, 0, 0, 0]])
  difference = jnp.abs(users - encode(params, changed)).max(axis=-1)
  assert difference.min() > 1e-2


def test_an_empty_sequence_is_zeros_with_finite_gradients(params):
  users = encode(params, ITEMS)
  np.testing.assert_array_equal(users[3], 0)
  assert jnp.abs(users[:3]).max(axis=-1).min() > 0.1

  gradients = gradients_of(params, jnp.zeros_like(ITEMS))
  chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, params))


def test_gradients_reach_all_that_is_used(params):
  gradients = gradients_of(params, ITEMS)
  chex.assert_tree_all_finite(gradients)
  rows = jnp.abs(gradients['item_embedding']).max(axis=-1) > 0
  # All rows but those of padding and of the items 8 and 9, which nobody has.
  assert rows.tolist() == [i in range(1, 8) or i == 10 for i in range(11)]


def test_each_query_pools_alone(params):
  users = encode(params, ITEMS).reshape(4, 4, 8)
  single = ENCODER.clone(num_queries=1)
  for k in (0, 3):
    pooling = {'query': params['pooling']['query'][k : k + 1]}
    alone = encode(params | {'pooling': pooling}, ITEMS, encoder=single)
    chex.assert_trees_all_close(users[:, k], alone, atol=1e-6)


def test_cosine_pooling_ignores_the_length_of_a_query(params):
  encoder = ENCODER.clone(cosine_pooling=True)
  query = params['pooling']['query']
  one, two, zero = (
    encode(params | {'pooling': {'query': x}}, ITEMS, encoder=encoder)
    for x in (query, 2 * query, 0 * query)
  )
  chex.assert_trees_all_close(one, two, atol=1e-6)
  assert jnp.abs(one - encode(params, ITEMS)).max() > 1e-2
  chex.assert_tree_all_finite(zero)


def test_the_last_state_may_be_read_out(params):
  pooled = encode(params, ITEMS)
  last = encode(params, ITEMS, encoder=ENCODER.clone(readout='last'))
  both = encode(params, ITEMS, encoder=ENCODER.clone(readout='pooled,last'))
  states = ENCODER.apply({'params': params}, ITEMS, method='hidden_states')
  # An empty sequence has no last state.
  expected = [states[0, 3], states[1, 2], states[2, 0], jnp.zeros(8)]
  chex.assert_trees_all_close(last, jnp.stack(expected), atol=1e-5)
  chex.assert_trees_all_close(both, jnp.concatenate([pooled, last], axis=1))
  assert ENCODER.vector_dim == 32
  assert ENCODER.clone(readout='last').vector_dim == 8
  assert ENCODER.clone(readout='pooled,last').vector_dim == 40


@pytest.mark.parametrize('readout', ['last', 'pooled,last'])
def test_the_readout_changes_no_parameter(readout):
  found, expected = (
    jax.eval_shape(encoder.init, jax.random.key(0), ITEMS)
    for encoder in (ENCODER.clone(readout=readout), ENCODER)
  )
  assert found == expected


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_items': 0}, 'num_items must be at least 1, not 0'),
    ({'max_length': 0}, 'max_length must be at least 1, not 0'),
    ({'embed_dim': 0}, 'embed_dim must be at least 1'),
    ({'num_layers': 0}, 'num_layers must be at least 1'),
    ({'num_heads': 0}, 'num_heads must be at least 1'),
    ({'num_queries': 0}, 'num_queries must be at least 1'),
    ({'num_heads': 3}, 'num_heads must divide embed_dim: 64 features'),
    ({'dropout_rate': 1.0}, r'dropout_rate must be in \[0, 1\), not 1.0'),
    ({'dropout_rate': -0.1}, r'dropout_rate must be in \[0, 1\), not -0.1'),
    ({'dtype': 'float64'}, "dtype must be 'float32' or 'bfloat16', not 'float"),
    ({'dtype': 'half'}, "dtype must be .* not 'half'"),
    ({'readout': 'first'}, "readout must be pooled or last .* not 'first'"),
  ],
)
def test_a_bad_field_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    UserEncoder(**{'num_items': 9} | fields)


@pytest.mark.parametrize('length', [0, 7])
def test_a_bad_length_is_refused(params, length):
  with pytest.raises(ValueError, match=f'{length} items, but max_length is 6'):
    encode(params, jnp.ones((1, length), jnp.int32))


@pytest.mark.parametrize('items', [ITEMS[0], ITEMS[None]])
def test_a_bad_shape_is_refused(items):
  # Unwrapped, because in tests the annotations would raise first.
  with pytest.raises(ValueError, match='one user is items'):
    inspect.unwrap(UserEncoder.hidden_states)(ENCODER, items)


def test_parameters_are_float32_in_a_program_of_float64():
  with jax.enable_x64(True):
    made = jax.eval_shape(ENCODER.init, jax.random.key(0), ITEMS)
  assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize('unknown', [11, -1])
def test_an_unknown_id_is_nan(params, unknown):
  users = encode(params, ITEMS.at[0, 0].set(unknown))
  assert jnp.isnan(users).any(axis=-1).tolist() == [True, False, False, False]


def test_items_may_be_looked_up_before(params):
  embedded = params['item_embedding'][ITEMS]
  others = params | {'item_embedding': 0 * params['item_embedding']}
  users = ENCODER.apply({'params': others}, ITEMS, embedded=embedded)
  chex.assert_trees_all_close(users, encode(params, ITEMS), atol=1e-6)


HALF = ENCODER.clone(dtype='bfloat16')


def relative(value, expected):
  return jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)


@functools.partial(jax.jit, static_argnames='encoder')
def users_and_gradients(params, encoder, keys=None):
  def loss(params):
    users = encoder.apply(
      {'params': params}, ITEMS, deterministic=keys is None, keys=keys
    )
    return jnp.sum(jnp.sin(users)), users

  return jax.grad(loss, has_aux=True)(params)


def test_bfloat16_is_close_to_float32(params):
  # With the same dropout.
  keys = jax.random.split(jax.random.key(0), 4)
  gradients, users = users_and_gradients(params, HALF, keys)
  expected_gradients, expected = users_and_gradients(params, ENCODER, keys)
  chex.assert_trees_all_equal_shapes_and_dtypes(
    (gradients, users), (expected_gradients, expected)
  )
  chex.assert_type(users, jnp.float32)
  # The error shows that the computation had 8 bits instead of 24.
  assert 1e-4 < relative(users, expected) < 2e-2
  chex.assert_tree_all_finite(gradients)
  errors = jax.tree.map(relative, gradients, expected_gradients)
  # The bias of the keys has no gradient, as it shifts all scores of a softmax.
  errors['blocks_0']['attention']['key'].pop('bias')
  assert max(jax.tree.leaves(errors)) < 0.1
  again = users_and_gradients(params, HALF, keys)
  chex.assert_trees_all_equal(again, (gradients, users))


def test_bfloat16_is_in_the_states_and_not_in_the_parameters(params):
  init = jax.eval_shape(HALF.init, jax.random.key(0), ITEMS)['params']
  assert {leaf.dtype.name for leaf in jax.tree.leaves(init)} == {'float32'}
  for encoder in (HALF, ENCODER):
    states = jax.eval_shape(
      functools.partial(encoder.apply, method='hidden_states'),
      {'params': params},
      ITEMS,
    )
    chex.assert_type(states, jnp.dtype(encoder.dtype))


def test_task_head_by_hand():
  head = TaskHead(num_outputs=3, hidden_dim=5)
  users = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
  params = random_params(head, users)
  hidden, output = (
    jax.tree.map(np.asarray, params[name]) for name in ('hidden', 'output')
  )
  expected = np.maximum(users @ hidden['kernel'] + hidden['bias'], 0)
  expected = expected @ output['kernel'] + output['bias']
  logits = head.apply({'params': params}, users)
  np.testing.assert_allclose(logits, expected, rtol=1e-5)
  chex.assert_shape(hidden['kernel'], (4, 5))
  assert (expected != 0).all()
