import functools

import chex
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from adaptssr_jax.dropout import Dropout
from adaptssr_jax.models import (
  TaskHead,
  UserEncoder,
  masked_softmax,
  pooling_penalty,
)

ENCODER = UserEncoder(9, max_length=6, embed_dim=8, num_layers=1, num_queries=4)
ITEMS = jnp.array([[1, 2, 3, 4], [5, 6, 10, 0], [7, 0, 0, 0], [0, 0, 0, 0]])


def random_params(module, x, seed=0):
  """Parameters as after training: the initial ones hardly attend."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.2, 0.8, x.shape), x.dtype), shapes
  )


@pytest.fixture(scope='module')
def params():
  return random_params(ENCODER, ITEMS)


@functools.partial(jax.jit, static_argnames='encoder')
def encode(params, items, encoder=ENCODER):
  return encoder.apply({'params': params}, items)


@jax.jit
def gradients_of(params, items):
  return jax.grad(lambda params: jnp.sum(encode(params, items) ** 2))(params)


@jax.jit
def encode_dropped(params, items, keys):
  """Encodes each user with a key of its own."""

  def encode_one(items, key):
    return ENCODER.apply(
      {'params': params},
      items[None],
      deterministic=False,
      rngs={'dropout': key},
    )[0]

  return jax.vmap(encode_one)(items, keys)


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
    else:  # 4096 draws or more: the error of the deviation is about 1 %.
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
  # Neither padding nor the items 8 and 9, which nobody has.
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
  ],
)
def test_a_bad_field_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    UserEncoder(**{'num_items': 9} | fields)


@pytest.mark.parametrize('length', [0, 7])
def test_a_bad_length_is_refused(params, length):
  with pytest.raises(ValueError, match=f'{length} items, but max_length is 6'):
    encode(params, jnp.ones((1, length), jnp.int32))


def test_an_unknown_id_is_nan(params):
  users = encode(params, ITEMS.at[0, 0].set(11))
  assert jnp.isnan(users).any(axis=-1).tolist() == [True, False, False, False]


def test_dropout_of_a_user_depends_on_its_key_alone(params):
  keys = jax.random.split(jax.random.key(3), 4)
  items = jnp.tile(ITEMS[:1], (4, 1))
  users = encode_dropped(params, items, keys)
  some = encode_dropped(params, items[2:], keys[jnp.array([1, 2])])
  chex.assert_trees_all_close(users[jnp.array([1, 2])], some, atol=1e-6)
  for i in range(4):
    for j in range(i):
      assert jnp.abs(users[i] - users[j]).max() > 1e-2


def test_dropout_is_in_four_places(params):
  keys = jax.random.split(jax.random.key(3), 1)
  jaxpr = jax.make_jaxpr(encode_dropped)(params, ITEMS[:1], keys)
  draws = str(jaxpr).count('random_bits[')
  # The embeddings; per block the attention, its output, the feed-forward.
  assert draws == 1 + 3 * 1


def test_dropout_is_off_by_default_and_needs_a_key(params):
  with pytest.raises(flax.errors.InvalidRngError, match='dropout'):
    ENCODER.apply({'params': params}, ITEMS, deterministic=False)
  silent = ENCODER.clone(dropout_rate=0.0)
  users = silent.apply({'params': params}, ITEMS, deterministic=False)
  chex.assert_trees_all_close(users, encode(params, ITEMS), atol=1e-6)


@functools.partial(jax.jit, static_argnames='rate')
def drop(x, rate, seed=0):
  rngs = {'dropout': jax.random.key(seed)}
  return Dropout(rate).apply({}, x, deterministic=False, rngs=rngs)


@pytest.mark.parametrize(
  ('rate', 'dropped'),
  [(0.1, 26), (0.5, 128), (1 / 512, 1), (1e-9, 1), (0.9999, 255)],
)
def test_dropout_share_and_mean(rate, dropped):
  x = jnp.full((1000, 4, 100), 3.0)
  y = np.asarray(drop(x, rate))
  share = dropped / 256
  zero = y == 0
  # Six standard errors, for all bytes of a word and for each of the four.
  error = 6 * np.sqrt(share * (1 - share) / x.size)
  assert abs(zero.mean() - share) < error
  by_byte = zero.reshape(-1, 4).mean(axis=0)
  np.testing.assert_allclose(by_byte, share, rtol=0, atol=2 * error)
  kept = np.unique(y[y != 0])
  np.testing.assert_allclose(kept, [3 * 256 / (256 - dropped)], rtol=1e-6)
  assert abs(y.mean() - 3) < 3 * error / (1 - share)


def test_dropout_of_neighbours_is_independent():
  zero = np.asarray(drop(jnp.ones(40_000), 0.5)) == 0
  for lag in (1, 2, 3, 4, 5):
    both = (zero[lag:] & zero[:-lag]).mean()
    np.testing.assert_allclose(both, 0.25, rtol=0, atol=0.015)


@pytest.mark.parametrize('shape', [(), (1,), (3, 5), (2, 0)])
def test_dropout_of_any_shape(shape):
  y = drop(jnp.ones(shape, jnp.bfloat16), 0.5)
  chex.assert_shape(y, shape)
  chex.assert_type(y, jnp.bfloat16)
  assert set(np.unique(y)) <= {0, 2}


@pytest.mark.parametrize(
  ('shape', 'longer'),
  [
    ((5,), (11,)),
    ((3, 4, 5), (3, 9, 5)),
    ((2, 3, 6, 6), (2, 3, 17, 17)),
  ],
)
def test_dropout_does_not_depend_on_padding(shape, longer):
  part = tuple(slice(n) for n in shape)
  y = np.asarray(drop(jnp.ones(shape), 0.5))
  np.testing.assert_array_equal(drop(jnp.ones(longer), 0.5)[part], y)
  # Rows and sequences differ, though.
  rows = y.reshape(-1, shape[-1])
  assert len(np.unique(rows, axis=0)) > len(rows) / 2


def test_dropped_users_do_not_depend_on_padding(params):
  keys = jax.random.split(jax.random.key(3), 4)
  users = encode_dropped(params, ITEMS, keys)
  padded = encode_dropped(params, jnp.pad(ITEMS, ((0, 0), (0, 2))), keys)
  chex.assert_trees_all_close(users, padded, atol=1e-6)


def test_dropout_gradient_is_its_mask():
  x = jnp.linspace(1, 2, 20)
  gradient = jax.grad(lambda x: drop(x, 0.5).sum())(x)
  np.testing.assert_allclose(gradient, drop(x, 0.5) / x, rtol=1e-6)
  np.testing.assert_array_equal(drop(x, 0.5), drop(x, 0.5))
  assert (drop(x, 0.5) != drop(x, 0.5, seed=1)).any()


def test_masked_softmax():
  scores = jnp.array([[2.0, 2.0, 9.0], [1e30, -1e30, 0.0], [1.0, 2.0, 3.0]])
  where = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
  weights = masked_softmax(scores.astype(jnp.bfloat16), where=where)
  chex.assert_type(weights, jnp.float32)
  np.testing.assert_array_equal(weights, [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]])
  gradient = jax.jit(jax.jacobian(masked_softmax))(scores, where=where)
  chex.assert_tree_all_finite(gradient)


def test_pooling_penalty_by_hand():
  # Cosines 0.6 (twice), 0 (twice), 0.8 (twice): sqrt(2 (0.36 + 0.64)).
  queries = jnp.array([[3.0, 0.0], [1.2, 1.6], [0.0, 0.1]])
  np.testing.assert_allclose(pooling_penalty(queries), 2**0.5, rtol=1e-6)
  penalty = jax.jit(pooling_penalty)
  check_grads(penalty, (queries,), order=1, modes=['rev'], rtol=1e-2)


@pytest.mark.parametrize(
  'queries', [jnp.ones((1, 5)), jnp.eye(2), jnp.zeros((2, 3))]
)
def test_pooling_penalty_is_flat_at_zero(queries):
  value, gradient = jax.jit(jax.value_and_grad(pooling_penalty))(queries)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


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
