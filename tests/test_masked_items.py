"""Masked items against plain loops over the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.masked_items import (
  init_masked_items,
  mask_items,
  masked_items_objective,
)
from adaptssr_jax.objectives.users import Encoding, user_keys
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.table import softmax
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.table.softmax import chunk_size, parts_at_once, sample_items

RATIO = 0.3
ENCODER = UserEncoder(12, max_length=10, embed_dim=8, num_layers=1)
# Users of 1, 2, 7 and 10 behaviours, and a padding user.
LENGTHS = [1, 2, 7, 10, 4]


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  items = rng.integers(1, 13, (5, 10))
  inside = np.arange(10) < np.array(LENGTHS)[:, None]
  return {
    'items': jnp.asarray(np.where(inside, items, 0), jnp.int32),
    'where': jnp.array([True, True, True, True, False]),
    'example_id': jnp.arange(5),
  }


@pytest.fixture(scope='module')
def params():
  encoder = jax.jit(ENCODER.init)(jax.random.key(0), jnp.ones((1, 1), int))
  bias = np.random.default_rng(1).normal(size=13).astype(np.float32)
  head = {'bias': jnp.asarray(bias)}
  return model_params(encoder['params']) | {'head': head}


@jax.jit
def compute(params, batch, key):
  return masked_items_objective(
    params,
    batch,
    key,
    encoding=Encoding(ENCODER, deterministic=True),
    ratio=RATIO,
  )


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def train(params, batch, key):
  return masked_items_objective(
    params, batch, key, encoding=Encoding(ENCODER), ratio=RATIO
  )


def predictions(params, batch, key):
  """(loss, right) of every masked position, one by one."""
  keys = user_keys(key, batch['example_id'])
  table = np.asarray(params['table'])[:13]
  states_of = jax.jit(functools.partial(ENCODER.apply, method='hidden_states'))
  for row in np.flatnonzero(batch['where']):
    items = batch['items'][row]
    mask_key, _ = jax.random.split(keys[row])
    masked = augment.mask(mask_key, items, ratio=RATIO, mask_id=ENCODER.mask_id)
    (states,) = states_of({'params': encoder_params(params)}, masked[None])
    for position in np.flatnonzero(masked == ENCODER.mask_id):
      logits = table @ np.asarray(states[position])
      logits = logits.astype(np.float64) + np.asarray(params['head']['bias'])
      label = int(items[position])
      loss = np.log(np.exp(logits).sum()) - logits[label]
      yield loss, logits.argmax() == label


def test_loss_and_accuracy_are_those_of_the_formula(params, batch):
  key = jax.random.key(3)
  loss, metrics = compute(params, batch, key)
  expected = list(predictions(params, batch, key))
  # 0 of 1 behaviour, 1 of 2, 3 of 7, 3 of 10.
  assert len(expected) == 7 == metrics['loss'][1] == metrics['accuracy'][1]
  losses, right = zip(*expected, strict=True)
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'][0], np.sum(losses), rtol=1e-5)
  assert metrics['accuracy'][0] == sum(right)


def test_a_fresh_model_predicts_at_random(batch):
  encoder = jax.jit(ENCODER.init)(jax.random.key(0), jnp.ones((1, 1), int))
  head = {'head': init_masked_items(ENCODER)}
  params = model_params(encoder['params']) | head
  # 12 items and padding.
  assert params['head']['bias'].shape == (13,)
  loss, _ = compute(params, batch, jax.random.key(0))
  np.testing.assert_allclose(loss, np.log(13), atol=0.1)


def test_every_item_sampled_is_nearly_the_whole_softmax(params, batch):
  key = jax.random.key(3)
  exact, _ = compute(params, batch, key)
  sampled = sample_items(batch, key, num_sampled=20_000, num_ids=13)
  estimate, metrics = compute(params, sampled, key)
  np.testing.assert_allclose(estimate, exact, rtol=0.03)
  # Of one item as often, which is known as well as if it were there once.
  one = batch | {'sampled': np.full(20_000, 7, np.int32)}
  few, _ = compute(params, one, key)
  assert abs(few - exact) > 0.1 * exact
  # An accuracy among sampled items would flatter.
  assert set(metrics) == {'loss'}


def test_masked_positions_are_taken_out_in_order(batch):
  items = batch['items'][3]
  mask = functools.partial(mask_items, ratio=RATIO, mask_id=13)
  masked, positions, labels = mask(jax.random.key(0), items)
  np.testing.assert_array_equal(positions, np.flatnonzero(masked == 13))
  assert positions.shape == labels.shape == (3,)
  np.testing.assert_array_equal(labels, items[positions])
  # Items that are not masked stay.
  np.testing.assert_array_equal(masked.at[positions].set(labels), items)
  _, others, _ = mask(jax.random.key(1), items)
  assert positions.tolist() != others.tolist()


def test_slots_without_a_masked_item_are_empty(batch):
  mask = functools.partial(mask_items, ratio=RATIO, mask_id=13)
  masked, positions, labels = mask(jax.random.key(0), batch['items'][0])
  np.testing.assert_array_equal(masked, batch['items'][0])
  assert positions.tolist() == [10, 10, 10]
  assert labels.tolist() == [0, 0, 0]


def test_parts_of_any_kind_change_nothing(params, batch, monkeypatch):
  key = jax.random.key(3)
  whole, _ = train(params, batch, key)
  # As of a large catalogue.
  monkeypatch.setattr(softmax, 'chunk_size', lambda *shape: 4)
  objective = functools.partial(
    masked_items_objective,
    encoding=Encoding(ENCODER, Buckets((4,), 2)),
    ratio=RATIO,
  )
  found = jax.jit(objective)(params, batch, key)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), found, whole
  )


def test_dropout_is_of_the_key_unless_deterministic(params, batch):
  def loss(key):
    (loss, _), _ = train(params, batch, key)
    return loss

  key, other = jax.random.split(jax.random.key(0))
  assert compute(params, batch, key)[0] != loss(key) == loss(key)
  # The mask too is of the key: another key with the same mask has no name.
  assert loss(other) != loss(key)


def test_the_gradient_reaches_table_encoder_and_bias(params, batch):
  _, grads = train(params, batch, jax.random.key(3))
  for leaf in (
    grads['table'],
    grads['encoder']['blocks_0']['expand']['kernel'],
    grads['head']['bias'],
  ):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 1e-4
  # Nothing is pooled: the query waits for the objective that needs it.
  assert not np.any(grads['encoder']['pooling']['query'])


@pytest.mark.parametrize(
  ('positions', 'ids', 'chunk'),
  # A batch of MovieLens, and one of the paper's largest catalogue.
  [(3_840, 3_701, None), (3_840, 645_973, 8192)],
)
def test_a_softmax_that_does_not_fit_is_computed_in_chunks(
  positions, ids, chunk
):
  assert chunk_size(positions, ids) == chunk


@pytest.mark.parametrize(
  ('ids', 'parts'),
  [(3707, (282, None)), (8192, (128, None)), (8193, (128, 2048))],
)
def test_a_group_has_a_million_scores_at_most(ids, parts):
  assert parts_at_once(ids) == parts
