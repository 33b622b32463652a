"""Causal items against plain loops, and what a causal encoder may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.causal_items import (
  causal_items_objective,
  next_items,
)
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.table import softmax
from adaptssr_jax.table.lookup import encoder_params, model_params
from tests.random_params import random_params

ENCODER = UserEncoder(
  12, max_length=6, embed_dim=8, num_layers=1, causal=True, readout='last'
)
# Users of 1, 2, 5 and 7 behaviours, one more than the encoder sees, and a
# padding user.
LENGTHS = [1, 2, 5, 7, 4]


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  items = rng.integers(1, 13, (5, 7))
  inside = np.arange(7) < np.array(LENGTHS)[:, None]
  return {
    'items': jnp.asarray(np.where(inside, items, 0), jnp.int32),
    'where': jnp.array([True, True, True, True, False]),
    'example_id': jnp.arange(5),
  }


@pytest.fixture(scope='module')
def params():
  encoder = random_params(ENCODER, jnp.ones((1, 1), int))
  bias = np.random.default_rng(1).normal(size=13).astype(np.float32)
  return model_params(encoder) | {'head': {'bias': jnp.asarray(bias)}}


@functools.partial(jax.jit, static_argnames='last_only')
def compute(params, batch, last_only=False):
  return causal_items_objective(
    params,
    batch,
    jax.random.key(3),
    encoding=Encoding(ENCODER, deterministic=True),
    last_only=last_only,
  )


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def train(params, batch):
  return causal_items_objective(
    params, batch, jax.random.key(3), encoding=Encoding(ENCODER)
  )


def predictions(params, batch):
  """(position, loss, right) of every prediction, each of its own sequence."""
  table = np.asarray(params['table'], np.float64)[:13]
  encode = jax.jit(ENCODER.apply)
  for row in np.flatnonzero(batch['where']):
    items = [item for item in batch['items'][row].tolist() if item]
    for position in range(1, len(items)):
      # Of the items before it alone: nothing that follows is there.
      before = np.where(np.arange(6) < position, np.resize(items, 6), 0)
      (state,) = encode({'params': encoder_params(params)}, before[None])
      logits = table @ np.asarray(state) + np.asarray(params['head']['bias'])
      loss = np.log(np.exp(logits).sum()) - logits[items[position]]
      last = position == len(items) - 1
      yield last, loss, logits.argmax() == items[position]


@pytest.mark.parametrize('last_only', [False, True])
def test_loss_and_accuracy_are_those_of_each_prefix(params, batch, last_only):
  loss, metrics = compute(params, batch, last_only=last_only)
  expected = [
    (loss, right)
    for last, loss, right in predictions(params, batch)
    if last or not last_only
  ]
  assert len(expected) == (3 if last_only else 1 + 4 + 6)
  assert metrics['loss'][1] == metrics['accuracy'][1] == len(expected)
  losses, right = zip(*expected, strict=True)
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)
  assert metrics['accuracy'][0] == sum(right)


def test_a_later_item_changes_no_earlier_state(params):
  items = jnp.array([[3, 7, 1, 9, 2, 4]])
  states = functools.partial(ENCODER.apply, method='hidden_states')
  variables = {'params': encoder_params(params)}
  found = states(variables, items)
  changed = states(variables, items.at[0, 3].set(11))
  np.testing.assert_array_equal(found[0, :3], changed[0, :3])
  assert (jnp.abs(found - changed)[0, 3:].max(axis=1) > 1e-3).all()
  # One that is not causal sees it.
  both = ENCODER.clone(causal=False)
  states = functools.partial(both.apply, variables, method='hidden_states')
  changed = states(items.at[0, 3].set(11))
  assert (jnp.abs(states(items) - changed)[0].max(axis=1) > 1e-3).all()


def test_all_positions_are_trained_by_one_item_more(params, batch):
  _, grads = train(params, batch)
  positions = np.abs(grads['encoder']['position_embedding']).max(axis=1)
  assert positions.shape == (6,)
  assert (positions > 1e-6).all()
  assert np.abs(grads['head']['bias']).max() > 1e-4


def test_who_has_no_next_item_does_not_count(params, batch):
  one = batch | {'items': batch['items'].at[:, 1:].set(0)}
  for last_only in (False, True):
    loss, metrics = compute(params, one, last_only=last_only)
    assert loss == 0
    assert metrics['loss'] == (0, 0)


def test_parts_of_any_kind_change_nothing(params, batch, monkeypatch):
  whole, _ = train(params, batch)
  # As of a large catalogue.
  monkeypatch.setattr(softmax, 'parts_at_once', lambda ids: (2, 3))
  objective = functools.partial(
    causal_items_objective, encoding=Encoding(ENCODER, Buckets((3,), 2))
  )
  found = jax.jit(objective)(params, batch, jax.random.key(3))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), found, whole
  )


def test_an_encoder_that_sees_both_ways_is_refused(params, batch):
  with pytest.raises(ValueError, match='causal=True'):
    causal_items_objective(
      params,
      batch,
      jax.random.key(0),
      encoding=Encoding(ENCODER.clone(causal=False)),
    )


def test_positions_and_their_next_items():
  items = jnp.array([[5, 6, 7], [8, 9, 0], [4, 0, 0], [0, 0, 0]])
  _, labels = next_items(items)
  assert labels.tolist() == [[6, 7], [9, 0], [0, 0], [0, 0]]
  positions, labels = next_items(items, last_only=True)
  assert positions[:2].tolist() == [[1], [0]]
  assert labels.tolist() == [[7], [9], [0], [0]]
