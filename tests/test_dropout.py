"""Dropout: how random its bytes are, and what they depend on."""

import functools

import chex
import flax.errors
import jax
import jax.export
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from adaptssr_jax.encoder import layers
from adaptssr_jax.encoder import model as models
from adaptssr_jax.encoder.dropout import dropout, mixed, random_bytes, row_seeds
from adaptssr_jax.encoder.model import UserEncoder
from tests.random_params import random_params

ENCODER = UserEncoder(9, max_length=6, embed_dim=8, num_layers=1, num_queries=4)
ITEMS = jnp.array([[1, 2, 3, 4], [5, 6, 10, 0], [7, 0, 0, 0], [0, 0, 0, 0]])
KEYS = jax.random.split(jax.random.key(3), 4)


@pytest.fixture(scope='module')
def params():
  return random_params(ENCODER, ITEMS)


@jax.jit
def encode(params, items, keys=None):
  return ENCODER.apply(
    {'params': params}, items, deterministic=keys is None, keys=keys
  )


def test_dropout_of_a_user_depends_on_its_key_alone(params):
  items = jnp.tile(ITEMS[:1], (4, 1))
  users = encode(params, items, KEYS)
  order = np.array([1, 3, 0, 1])
  moved = encode(params, items, KEYS[order])
  chex.assert_trees_all_close(moved, users[order], atol=1e-6)
  for i in range(4):
    for j in range(i):
      assert jnp.abs(users[i] - users[j]).max() > 1e-2


def test_seeds_may_be_drawn_before(params):
  users = encode(params, ITEMS, KEYS)
  encode_by = functools.partial(ENCODER.apply, {'params': params}, ITEMS)
  seeds = row_seeds(KEYS, draws=ENCODER.num_dropouts)
  found = jax.jit(functools.partial(encode_by, deterministic=False))(
    seeds=seeds
  )
  chex.assert_trees_all_close(found, users, atol=1e-6)


def test_dropped_users_do_not_depend_on_padding(params):
  users = encode(params, ITEMS, KEYS)
  padded = encode(params, jnp.pad(ITEMS, ((0, 0), (0, 2))), KEYS)
  chex.assert_trees_all_close(users, padded, atol=1e-6)


def test_dropout_is_in_four_places(params, monkeypatch):
  encoder = ENCODER.clone(num_layers=2)
  params = params | {'blocks_1': params['blocks_0']}
  seen = []

  def record(seeds, x, *, rate):
    seen.append((seeds, x.shape, rate))
    return x

  monkeypatch.setattr(models, 'dropout', record)
  monkeypatch.setattr(layers, 'dropout', record)

  def seeds_of_all(keys, deterministic):
    seen.clear()
    encoder.apply(
      {'params': params}, ITEMS, deterministic=deterministic, keys=keys
    )
    return [seeds for seeds, *_ in seen]

  seeds = jax.jit(seeds_of_all, static_argnums=1)(KEYS, False)
  _, shapes, rates = zip(*seen, strict=True)
  # Embeddings; then attention weights, attention and feed-forward by block.
  states, attention = (4, 4, 8), (4, 2, 4, 4)
  assert shapes == (states, *2 * (attention, states, states))
  assert set(rates) == {0.1}
  # All seeds differ, between dropouts and between users.
  assert len(np.unique(np.concatenate(seeds), axis=0)) == 7 * 4
  silent = functools.partial(seeds_of_all, deterministic=True)
  assert jax.eval_shape(silent, KEYS) == [None] * 7


def test_dropout_is_off_by_default_and_needs_a_key(params):
  apply = functools.partial(ENCODER.apply, {'params': params})
  with pytest.raises(flax.errors.InvalidRngError, match='dropout'):
    apply(ITEMS, deterministic=False)
  silent = ENCODER.clone(dropout_rate=0.0)
  apply = functools.partial(silent.apply, deterministic=False)
  users = jax.jit(apply)({'params': params}, ITEMS)
  chex.assert_trees_all_close(users, encode(params, ITEMS), atol=1e-6)


def test_keys_are_split_from_the_one_of_flax(params):
  items = jnp.tile(ITEMS[:1], (4, 1))
  drop = functools.partial(
    ENCODER.apply, {'params': params}, items, deterministic=False
  )
  compiled = jax.jit(lambda key: drop(rngs={'dropout': key}))
  users, others = (compiled(jax.random.key(seed)) for seed in (0, 1))
  chex.assert_trees_all_equal(users, compiled(jax.random.key(0)))
  for other in (others, users[::-1]):
    assert jnp.abs(users - other).max(axis=1).min() > 1e-2


def test_an_encoder_with_dropout_is_exported_for_any_number_of_users(
  params, monkeypatch
):
  # jaxtyping does not know that a free length may broadcast.
  monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)

  def encode_with(items, key):
    return ENCODER.apply(
      {'params': params}, items, deterministic=False, rngs={'dropout': key}
    )

  (users,) = jax.export.symbolic_shape('users')
  items = jax.ShapeDtypeStruct((users, 4), jnp.int32)
  key = jax.random.key(0)
  exported = jax.export.export(jax.jit(encode_with))(items, key)
  read = jax.export.deserialize(exported.serialize())
  for rows in (ITEMS, ITEMS[:1]):
    expected = jax.jit(encode_with)(rows, key)
    chex.assert_trees_all_close(read.call(rows, key), expected, atol=1e-6)


def seeds_of(seed, rows, draws=1):
  return row_seeds(jax.random.split(jax.random.key(seed), rows), draws=draws)


@functools.partial(jax.jit, static_argnames='rate')
def drop(x, rate, seed=0):
  rows = len(x) if x.ndim else 1
  y = dropout(
    seeds_of(seed, rows)[:, 0], x.reshape(rows, *x.shape[1:]), rate=rate
  )
  return y.reshape(x.shape)


@pytest.mark.parametrize(
  ('rate', 'dropped'),
  [(0.1, 26), (0.5, 128), (1 / 512, 1), (1e-9, 1), (0.9999, 255)],
)
def test_dropout_share_and_mean(rate, dropped):
  x = jnp.full((10, 100, 4, 100), 3.0)
  y = np.asarray(drop(x, rate))
  share = dropped / 256
  zero = y == 0
  # Six standard errors, for all bytes together and for each byte of a word.
  error = 6 * np.sqrt(share * (1 - share) / x.size)
  assert abs(zero.mean() - share) < error
  by_byte = zero.reshape(-1, 4).mean(axis=0)
  np.testing.assert_allclose(by_byte, share, rtol=0, atol=2 * error)
  kept = np.unique(y[y != 0])
  np.testing.assert_allclose(kept, [3 * 256 / (256 - dropped)], rtol=1e-6)
  assert abs(y.mean() - 3) < 3 * error / (1 - share)


def test_nothing_is_dropped_without_a_rate_or_seeds():
  x = jnp.linspace(-1, 1, 12).reshape(3, 4)
  chex.assert_trees_all_equal(dropout(None, x, rate=0.5), x)
  chex.assert_trees_all_equal(drop(x, 0.0), x)
  assert not (drop(x, 0.5) == x).all()


@pytest.mark.parametrize('shape', [(1,), (3, 5), (2, 0), (0, 3), (2, 1, 3, 5)])
def test_dropout_of_any_shape(shape):
  y = drop(jnp.ones(shape, jnp.bfloat16), 0.5)
  chex.assert_shape(y, shape)
  chex.assert_type(y, jnp.bfloat16)
  assert set(np.unique(y)) <= {0, 2}


def test_dropout_gradient_is_its_mask():
  x = jnp.linspace(1, 2, 20).reshape(2, 10)
  gradient = jax.grad(lambda x: drop(x, 0.5).sum())(x)
  np.testing.assert_allclose(gradient, drop(x, 0.5) / x, rtol=1e-6)
  np.testing.assert_array_equal(drop(x, 0.5), drop(x, 0.5))
  assert (drop(x, 0.5) != drop(x, 0.5, seed=1)).any()


@pytest.mark.parametrize(
  ('shape', 'longer'),
  [((5,), (11,)), ((4, 5), (9, 5)), ((3, 6, 6), (3, 17, 17))],
)
def test_bytes_do_not_depend_on_padding(shape, longer):
  part = tuple(slice(n) for n in shape)
  seed = seeds_of(0, 1)[0, 0]
  draw = jax.jit(random_bytes, static_argnums=1)
  drawn = np.asarray(draw(seed, shape))
  np.testing.assert_array_equal(np.asarray(draw(seed, longer))[part], drawn)
  # All rows of all sequences differ.
  rows = drawn.reshape(-1, shape[-1])
  assert len(np.unique(rows, axis=0)) == len(rows)


def slow_mixed(x):
  """The hash by Python integers."""
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
    x = (x ^ x >> shift) * factor % 2**32
  return x


def test_bytes_are_those_of_the_formula():
  seed = [2**32 - 5, 123_456_789]
  drawn = random_bytes(jnp.array(seed, jnp.uint32), (2, 3, 4, 9))
  for (a, b, t, j), byte in np.ndenumerate(np.asarray(drawn)):
    sequence = 3 * a + b
    row = slow_mixed((6 * t + sequence) ^ seed[0]) + seed[1]
    word = slow_mixed(slow_mixed(row % 2**32 ^ j // 4))
    assert byte == word >> 8 * (j % 4) & 255


def test_the_hash_is_one_to_one():
  """Among a million random words, about a hundred pairs would be equal."""
  for words in (
    np.arange(2**20, dtype=np.uint32),
    np.unique(
      np.random.default_rng(1).integers(2**32, size=2**20, dtype=np.uint32)
    ),
  ):
    found = np.sort(np.asarray(jax.jit(mixed)(words)))
    assert np.diff(found).all()
    assert len(found) > 1e6


def test_each_bit_turns_over_half_of_all_others():
  words = np.random.default_rng(0).integers(2**32, size=2**17, dtype=np.uint32)
  before = np.asarray(mixed(jnp.asarray(words)))
  for bit in range(32):
    turned = np.asarray(mixed(jnp.asarray(words ^ np.uint32(1 << bit))))
    flips = np.unpackbits(
      (before ^ turned).view(np.uint8).reshape(-1, 4), axis=1
    )
    # The standard error is 0.14 %.
    np.testing.assert_allclose(flips.mean(axis=0), 0.5, rtol=0, atol=0.01)


USERS, DRAWS, HEADS, LENGTH = 16, 4, 2, 64


@functools.cache
def drawn_bytes(consecutive):
  """Bytes [users, draws, heads, rows, columns] of split or consecutive keys."""
  keys = jax.random.split(jax.random.key(7), USERS)
  if consecutive:
    keys = jax.vmap(jax.random.key)(jnp.arange(USERS))
  draw = functools.partial(random_bytes, shape=(HEADS, LENGTH, LENGTH))
  seeds = row_seeds(keys, draws=DRAWS)
  return np.asarray(jax.jit(jax.vmap(jax.vmap(draw)))(seeds))


def chi_square(values):
  """Chi-square of bytes: mean 255 and deviation 22.6 if they are uniform."""
  counts = np.bincount(values.reshape(-1), minlength=256)
  return np.square(counts - counts.mean()).sum() / counts.mean()


@pytest.mark.parametrize('consecutive', [False, True])
def test_all_values_of_a_byte_are_as_likely(consecutive):
  drawn = drawn_bytes(consecutive)
  assert chi_square(drawn) < 255 + 6 * 22.6
  for place in range(4):
    assert chi_square(drawn[..., place::4]) < 255 + 6 * 22.6


AXES = {'users': 0, 'draws': 1, 'heads': 2, 'rows': 3, 'columns': 4}


@pytest.mark.parametrize('consecutive', [False, True], ids=['', 'consecutive'])
@pytest.mark.parametrize(
  ('axis', 'lag'),
  [*((axis, 1) for axis in AXES), *(('columns', lag) for lag in (2, 3, 4, 8))],
)
def test_neighbours_are_independent(axis, lag, consecutive):
  drawn = np.moveaxis(drawn_bytes(consecutive), AXES[axis], 0)
  left, right = drawn[lag:], drawn[:-lag]
  # The rates 0.1 and 0.5.
  for dropped in (26, 128):
    share = (dropped / 256) ** 2
    both = ((left < dropped) & (right < dropped)).mean()
    error = np.sqrt(share * (1 - share) / left.size)
    assert abs(both - share) < 6 * error
  # Their differences are as random as they are.
  assert chi_square(left ^ right) < 255 + 6 * 22.6
