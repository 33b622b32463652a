import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.buckets import bucket_widths, in_buckets
from adaptssr_jax.dropout import Dropout
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.users import encode_user

LENGTHS = np.array([8, 1, 3, 0, 5, 2, 7, 3, 2, 6, 1])
ITEMS = jnp.array([[1 + (n + t) % 9 if t < n else 0 for t in range(8)]
                   for n in LENGTHS])  # fmt: skip
KEYS = jax.random.split(jax.random.key(1), len(LENGTHS))


PARAMS = {
  'table': jnp.arange(40.0).reshape(10, 4) / 40,
  'map': jnp.eye(4) + 0.1,
}


def encode_one(params, items, key):
  """Quick to compile; an item's part depends on its dropout and its place."""
  states = params['table'][items] + jnp.arange(len(items))[:, None]
  rngs = {'dropout': key}
  states = Dropout(0.5).apply({}, states, deterministic=False, rngs=rngs)
  states = jnp.where(items[:, None] != 0, states, 0)
  return jnp.tanh(states.sum(axis=0) @ params['map'] / 20)


def encode_with(encoder, params, items, key):
  return encode_user(params, encoder, key, items)


def users_of(params, items, keys, widths=None, encode=encode_one):
  encode = jax.vmap(functools.partial(encode, params))
  if widths is None:
    return encode(items, keys)
  return in_buckets(encode, items, keys, widths=widths)


@functools.partial(jax.jit, static_argnames=('widths', 'encode'))
def users_and_gradients(params, items, keys, widths=None, encode=encode_one):
  def loss(params):
    users = users_of(params, items, keys, widths, encode)
    return jnp.sum(users * jnp.arange(users.size).reshape(users.shape)), users

  gradients, users = jax.grad(loss, has_aux=True)(params)
  return users, gradients


def widths_of_rows(items, *args):
  """Tells by which program a row was encoded, and that its args are its own."""
  width = jnp.full(len(items), items.shape[1])
  return {'first': items[:, 0], 'width': width, 'args': args}


def assert_close(tree, expected):
  """To rounding: of sums in another order, relative to the largest entry."""
  leaves = jax.tree.leaves(tree), jax.tree.leaves(expected)
  for leaf, other in zip(*leaves, strict=True):
    scale = 1 + float(jnp.abs(other).max())
    np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
  'widths', [(2, 5, 8), (1, 8), (8, 8)], ids=['fits', 'too long', 'one width']
)
def test_users_and_gradients_are_those_of_the_whole_batch(widths):
  plain = users_and_gradients(PARAMS, ITEMS, KEYS)
  assert_close(users_and_gradients(PARAMS, ITEMS, KEYS, widths), plain)
  assert jnp.abs(plain[0]).max() > 0.1
  other = users_and_gradients(PARAMS, ITEMS, KEYS[::-1])
  assert jnp.abs(plain[0] - other[0]).max() > 0.1


def test_the_user_encoder_in_buckets():
  encoder = UserEncoder(9, max_length=8, embed_dim=4, num_layers=1)
  params = encoder.init(jax.random.key(0), ITEMS)['params']
  encode = functools.partial(encode_with, encoder)
  plain = users_and_gradients(params, ITEMS, KEYS, encode=encode)
  done = users_and_gradients(params, ITEMS, KEYS, (3, 8), encode)
  assert_close(done, plain)


def test_devices_have_rows_and_buckets_of_their_own():
  # Of 8 rows each: the second device has a row that does not fit.
  rows = np.array([[1, 3, 5, 7, 8, 10, 4, 2], [0, 2, 4, 6, 9, 0, 2, 4]])
  users = functools.partial(users_of, widths=(3, 8))
  users = jax.pmap(users, in_axes=(None, 0, 0))(PARAMS, ITEMS[rows], KEYS[rows])
  plain = users_of(PARAMS, ITEMS, KEYS)
  assert_close(users, plain[rows])


@pytest.mark.parametrize('widths', [(2, 5, 8), (1, 3, 7, 8), (2, 3, 3, 8)])
def test_each_row_has_the_width_of_its_group(widths):
  encode = functools.partial(in_buckets, widths_of_rows, widths=widths)
  done = jax.jit(encode)(ITEMS, {'row': jnp.arange(11)})
  np.testing.assert_array_equal(done['args'][0]['row'], np.arange(11))
  np.testing.assert_array_equal(done['first'], ITEMS[:, 0])
  ends = [11 * (g + 1) // len(widths) for g in range(len(widths))]
  ranks = np.argsort(np.argsort(LENGTHS, kind='stable'))
  expected = [
    widths[np.searchsorted(ends, rank, side='right')] for rank in ranks
  ]
  # Cutting is refused for the whole batch.
  if np.any(expected < LENGTHS):
    expected = [8] * 11
  np.testing.assert_array_equal(done['width'], expected)


def test_fitting_is_exact():
  """A width one below the longest of its group is too short, its own is not."""
  items = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
  for width, whole in ((1, True), (2, False)):
    done = in_buckets(widths_of_rows, items, widths=(width, 4))
    assert (np.asarray(done['width']) == 4).all() == whole


def test_groups_of_one_width_are_encoded_together():
  seen = []

  def encode(items):
    seen.append(items.shape)
    return items.sum(axis=1)

  in_buckets(encode, ITEMS, widths=(2, 8, 8, 8))
  # The whole batch is the program that lax.cond keeps for what does not fit.
  assert sorted(seen) == [(2, 2), (9, 8), (11, 8)]


@pytest.mark.parametrize('widths', [(), (0, 8), (5, 2)])
def test_bad_widths_are_refused(widths):
  with pytest.raises(ValueError, match='widths must be positive and in order'):
    in_buckets(widths_of_rows, ITEMS, widths=widths)


@pytest.mark.parametrize('shape', [(0, 8), (1, 8), (2, 1)])
def test_few_rows_and_short_ones(shape):
  items = jnp.ones(shape, jnp.int32)
  done = in_buckets(functools.partial(jnp.sum, axis=1), items, widths=(2, 4, 8))
  np.testing.assert_array_equal(done, [shape[1]] * shape[0])


def exceeds(lengths, width, rows, rank):
  """P(the rank-th shortest of `rows` draws is longer than the width)."""
  share = np.mean(np.asarray(lengths) <= width)
  return sum(
    math.comb(rows, k) * share**k * (1 - share) ** (rows - k)
    for k in range(rank)
  )


@pytest.mark.parametrize(('rows', 'groups'), [(40, 3), (100, 8), (3, 8)])
def test_widths_are_the_least_that_nearly_always_fit(rows, groups):
  lengths = np.random.default_rng(0).integers(3, 60, 500)
  widths = bucket_widths(lengths, rows=rows, groups=groups, max_length=50)
  assert len(widths) == groups
  assert widths[-1] == 50
  cut = np.minimum(lengths, 50)
  for g, width in enumerate(widths[:-1]):
    rank = rows * (g + 1) // groups
    assert width % 4 == 0 or width == 50
    assert exceeds(cut, width, rows, rank) < 1e-3
    if width > 4:
      assert exceeds(cut, width - 4, rows, rank) >= 1e-3


def test_drawn_batches_fit():
  rng = np.random.default_rng(1)
  lengths = np.minimum(rng.lognormal(3, 1, 10_000).astype(int) + 1, 80)
  widths = bucket_widths(lengths, rows=128, groups=4, max_length=80, chance=0.1)
  batches = np.sort(rng.choice(lengths, (4000, 128)), axis=1)
  longest = batches[:, 31::32]
  share = (longest > np.array([widths])).mean(axis=0)
  assert (share < 0.1 + 0.02).all()
  assert widths[0] < widths[1] < widths[2] < 80


@pytest.mark.parametrize('name', ['rows', 'groups', 'max_length'])
def test_bad_settings_are_refused(name):
  settings = {'rows': 4, 'groups': 2, 'max_length': 8} | {name: 0}
  with pytest.raises(ValueError, match=f'{name} must be at least 1, not 0'):
    bucket_widths(np.array([1]), **settings)
  with pytest.raises(ValueError, match='the number of lengths must be at'):
    bucket_widths(np.array([], int), rows=4, groups=2, max_length=8)
