"""Items drawn from a softmax, and sequences with filled masked items."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.fill import encode_filled, fill_masked
from adaptssr_jax.objectives.users import Encoding, user_keys
from adaptssr_jax.ops.item_draws import draw_ids
from adaptssr_jax.table import softmax
from adaptssr_jax.table.lookup import BatchRows, encoder_params, model_params
from adaptssr_jax.table.softmax import draw_items
from tests.random_params import random_params

ITEMS, USERS, LENGTH = 150, 8, 6
ENCODER = UserEncoder(ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1)
ENCODING = Encoding(ENCODER, deterministic=True)
KEY = jax.random.key(5)


@pytest.fixture(scope='module')
def params():
  encoder = random_params(ENCODER, jnp.ones((1, 1), int))
  return model_params(encoder) | {'head': {'bias': jnp.zeros(ITEMS + 1)}}


@pytest.fixture(scope='module')
def items():
  rng = np.random.default_rng(0)
  lengths = np.array([0, 1, 2, 3, 4, 5, 6, 6])[:, None]
  items = rng.integers(1, ITEMS + 1, (USERS, LENGTH))
  return jnp.asarray(np.where(np.arange(LENGTH) < lengths, items, 0), jnp.int32)


@pytest.mark.parametrize(
  ('ids', 'chunk_size'), [(150, None), (150, 70), (6, 1)]
)
def test_items_are_drawn_by_their_shares(ids, chunk_size):
  draws, never = 40_000, [0, ids // 2 - 1, ids - 1]
  rng = np.random.default_rng(0)
  states, table = rng.normal(size=3), rng.normal(size=(ids, 3))
  bias = rng.normal(size=ids)
  # Some ids are never drawn, including the first and the last.
  bias[never] = np.finfo(np.float32).min
  found = jax.jit(functools.partial(draw_ids, chunk_size=chunk_size))(
    jax.random.split(KEY, draws),
    jnp.broadcast_to(jnp.asarray(states, jnp.float32), (draws, 3)),
    jnp.asarray(table, jnp.float32),
    jnp.asarray(bias, jnp.float32),
  )
  z = table @ states + bias
  shares = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
  counts = np.bincount(found, minlength=ids)
  assert not counts[never].any()
  # Within five standard deviations of each count.
  expected = draws * shares
  assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1)


def test_a_row_draws_by_its_own_key():
  rng = np.random.default_rng(1)
  states, table, bias = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((9, 3), (20, 3), (20,))
  )
  keys = jax.random.split(KEY, 9)
  draw = jax.jit(draw_ids)
  found = draw(keys, states, table, bias)
  np.testing.assert_array_equal(
    draw(keys[4:], states[4:], table, bias), found[4:]
  )
  assert len(set(found.tolist())) > 1


def test_draws_do_not_depend_on_how_many_states_a_device_has(monkeypatch):
  # As with a large catalogue, the scores of a few states fit, but not those of
  # many.
  monkeypatch.setattr(softmax, '_MOST_SCORES', 1_000)
  monkeypatch.setattr(softmax, '_CHUNK', 64)
  sizes = [softmax.chunk_size(states, 150) for states in (5, 40)]
  assert sizes == [None, 64]
  rng = np.random.default_rng(1)
  table = jnp.asarray(rng.normal(size=(150, 2)), jnp.float32)
  states = jnp.asarray(rng.normal(size=(40, 2)), jnp.float32)
  draw = jax.jit(functools.partial(draw_items, table, jnp.zeros(150)))
  keys = jax.random.split(KEY, len(states))
  few = draw(states[:5], keys[:5])
  np.testing.assert_array_equal(draw(states, keys)[:5], few)


def test_a_chunk_of_nothing_is_refused():
  with pytest.raises(ValueError, match='chunk_size must be at least 1'):
    draw_ids(
      jax.random.split(KEY, 1),
      jnp.ones((1, 1)),
      jnp.ones((2, 1)),
      jnp.ones(2),
      chunk_size=0,
    )


# Compiled once for several tests.
@jax.jit
def filled(params, items, sampled=None):
  keys = user_keys(KEY, jnp.arange(USERS))
  return fill_masked(
    params, items, keys, encoding=ENCODING, ratio=0.5, sampled=sampled
  )


def test_only_masked_items_are_filled(params, items):
  items = np.asarray(items)
  found, masked = jax.device_get(filled(params, items))
  assert found.dtype == items.dtype
  # Half of the n behaviours are masked, but never all of them.
  for n, row in zip([0, 1, 2, 3, 4, 5, 6, 6], range(USERS), strict=True):
    positions = masked.positions[row][masked.labels[row] > 0]
    assert len(positions) == min(-(-n // 2), max(n - 1, 0))
    others = np.setdiff1d(np.arange(LENGTH), positions)
    np.testing.assert_array_equal(found[row, others], items[row, others])
    assert np.all(
      (found[row, positions] > 0) & (found[row, positions] <= ITEMS)
    )
  assert np.any(found != items)


def test_a_confident_model_fills_in_its_prediction(params, items):
  head = {'bias': jnp.zeros(ITEMS + 1).at[7].set(1e4)}
  found, masked = jax.device_get(filled(params | {'head': head}, items))
  for row in range(USERS):
    positions = masked.positions[row][masked.labels[row] > 0]
    assert np.all(found[row, positions] == 7)


def test_only_sampled_items_are_filled_in(params, items):
  # Padding is sampled as well, and never drawn.
  sampled = jnp.array([0, 3, 9])
  found, masked = jax.device_get(filled(params, items, sampled))
  drawn = [
    int(found[row, slot])
    for row in range(USERS)
    for slot in masked.positions[row][masked.labels[row] > 0]
  ]
  assert set(drawn) == {3, 9}
  # If only padding is sampled, masked items keep their ids.
  kept, _ = filled(params, items, jnp.array([0, 0, 0]))
  np.testing.assert_array_equal(kept, items)


def test_rows_of_a_batch_need_sampled_items(params):
  ids = jnp.array([0, 3, 9])
  rows = BatchRows(ids, params['table'][ids])
  keys, states = jax.random.split(KEY, 5), jnp.ones((5, 4))
  bias = params['head']['bias']
  for table in (rows, rows._replace(shard=params['table'][:2])):
    found = draw_items(table, bias, states, keys, sampled=ids)
    whole = draw_items(params['table'], bias, states, keys, sampled=ids)
    np.testing.assert_array_equal(found, whole)
    with pytest.raises(ValueError, match='draw it from sampled items'):
      draw_items(table, bias, states, keys)


def test_draws_have_no_gradient(params, items):
  def sum_of_filled(params):
    found, _ = filled(params, items)
    return jnp.sum(params['table'][found])

  grads = jax.jit(jax.grad(sum_of_filled))(params)
  assert not any(np.any(x) for x in jax.tree.leaves(grads['encoder']))
  assert not np.any(grads['head']['bias'])


def test_filled_views_mask_an_increasing_share(params, items):
  batch = {
    'items': items,
    'where': jnp.arange(USERS) < USERS - 1,
    'example_id': jnp.arange(USERS),
  }
  # Masked items are recognised by the item that they are filled with.
  params = params | {'head': {'bias': jnp.zeros(ITEMS + 1).at[7].set(1e4)}}
  batch['items'] = jnp.where(items == 7, 8, items)
  encode = functools.partial(
    encode_filled, encoding=ENCODING, ratio=0.5, num_steps=20
  )
  # Without a step, the full share is masked.
  all_masked = jax.jit(lambda *args: encode(*args).items)(params, batch, KEY)
  found, run = [], jax.jit(encode)
  for step in (0, 9, 19):
    views = run(params, batch | {'step': jnp.array(step)}, KEY)
    assert views.items.shape == (2, USERS, LENGTH)
    assert views.users.shape == (2, 1, USERS, 4)
    found.append(views.items)
  changed = [
    np.sum(np.asarray(rows) != np.asarray(batch['items']), axis=(0, 2))
    for rows in (*found, all_masked)
  ]
  n = np.array([0, 1, 2, 3, 4, 5, 6, 6])
  assert changed[0].tolist() == (2 * (n > 1)).tolist()
  np.testing.assert_array_equal(changed[2], changed[3])
  most = np.minimum(np.ceil(0.5 * n), np.maximum(n - 1, 0))
  assert changed[3].tolist() == (2 * most).tolist()
  assert changed[0].sum() < changed[1].sum() < changed[2].sum()
  # Each view is filled, and encoded, on its own.
  assert np.any(views.items[0] != views.items[1])
  vectors = jax.jit(ENCODER.apply)(
    {'params': encoder_params(params)}, views.items.reshape(-1, LENGTH)
  )
  np.testing.assert_allclose(
    views.users.reshape(-1, 4), vectors, rtol=1e-5, atol=1e-6
  )
