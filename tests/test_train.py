"""The training step: one device and eight give the same update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.objectives.classification import (
  class_logits,
  classification_objective,
)
from adaptssr_jax.objectives.masked_items import (
  init_masked_items,
  masked_items_objective,
)
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.table.lookup import model_params
from adaptssr_jax.table.softmax import sample_items
from adaptssr_jax.training.devices import AXIS, replicate
from adaptssr_jax.training.step import (
  gradients,
  init_state,
  mean_metrics,
  pmap_step,
  train_step,
)
from tests.adaptssr_objective import adaptssr_objective
from tests.quick_objective import quick_objective

USERS, LENGTH, ITEMS, CLASSES = 16, 6, 20, 3
ENCODER = UserEncoder(ITEMS, LENGTH, embed_dim=8, num_layers=1)
HEAD = TaskHead(CLASSES)
AUGMENTATIONS = (
  functools.partial(augment.crop, ratio=0.5),
  functools.partial(augment.mask, ratio=0.5, mask_id=ENCODER.mask_id),
)
OBJECTIVES = {
  'adaptssr': functools.partial(
    adaptssr_objective, augmentations=AUGMENTATIONS
  ),
  'masked_items': functools.partial(masked_items_objective, ratio=0.5),
  'sampled_items': quick_objective,
  'classification': functools.partial(classification_objective, head=HEAD),
}
# An optimizer that keeps the gradient it gets in its state.
OPTIMIZER = optax.trace(decay=0.0)
KEY = jax.random.key(2)


def make_batch(counts=None):
  """Users of all lengths from 1; the last ones are padding if counts < all."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, LENGTH + 1, (USERS, 1))
  items = rng.integers(1, ITEMS + 1, (USERS, LENGTH)).astype(np.int32)
  return {
    'items': np.where(np.arange(LENGTH) < lengths, items, 0).astype(np.int32),
    'where': np.arange(USERS) < (counts or USERS),
    'example_id': rng.permutation(100)[:USERS].astype(np.int32),
    'label': (np.arange(USERS) % CLASSES).astype(np.int32),
  }


def reordered(batch, order):
  return {name: column[order] for name, column in batch.items()}


@functools.cache
def start():
  params = {
    'encoder': jax.jit(ENCODER.init)(
      jax.random.key(0), jnp.ones((1, 1), jnp.int32)
    ),
    'head': jax.jit(HEAD.init)(jax.random.key(1), jnp.ones((1, 8))),
  }
  params = {name: tree['params'] for name, tree in params.items()}
  params |= model_params(params['encoder'])
  # One head has the parameters of all objectives.
  params['head'] |= init_masked_items(ENCODER)
  return init_state(params, OPTIMIZER)


def step_of(name, axis_name):
  loss_fn = functools.partial(
    OBJECTIVES[name], encoding=Encoding(ENCODER, axis_name=axis_name)
  )
  step = functools.partial(
    train_step, loss_fn=loss_fn, optimizer=OPTIMIZER, axis_name=axis_name
  )
  if name != 'sampled_items':
    return step
  draw = functools.partial(sample_items, num_sampled=7, num_ids=ENCODER.mask_id)
  return functools.partial(step, prepare=draw)


@functools.cache
def whole(name):
  return jax.jit(step_of(name, None))


@functools.cache
def mapped(name):
  return pmap_step(step_of(name, AXIS), num_replicated_args=1)


def on(devices, name, batch, state=None):
  split = {
    key: column.reshape(devices, -1, *column.shape[1:])
    for key, column in batch.items()
  }
  return mapped(name)(state or replicate(start()), split, KEY)


def assert_same_update(result, other):
  """Equal metrics and gradients, up to rounding."""
  (state, metrics), (expected, expected_metrics) = result, other
  assert int(state.step) == int(expected.step)
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
  expected = expected.opt_state.trace
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  assert largest > 1e-3
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5 * largest),
    state.opt_state.trace,
    expected,
  )


def differ(result, other):
  """Whether a gradient moves by more than a thousandth of the largest."""
  leaves, others = (
    jax.tree.leaves(state.opt_state.trace) for state, _ in (result, other)
  )
  largest = max(np.abs(leaf).max() for leaf in leaves)
  pairs = zip(leaves, others, strict=True)
  return max(np.abs(a - b).max() for a, b in pairs) > 1e-3 * largest


@pytest.mark.parametrize('name', OBJECTIVES)
def test_eight_devices_update_as_one_does(name):
  # Each device has two users; in the second batch, three have only padding.
  for batch in (make_batch(), make_batch(counts=9)):
    expected = whole(name)(start(), batch, KEY)
    assert_same_update(on(8, name, batch), expected)


def test_one_mapped_device_equals_no_mapping():
  batch = make_batch(counts=13)
  expected = whole('sampled_items')(start(), batch, KEY)
  assert_same_update(on(1, 'sampled_items', batch), expected)


@pytest.mark.parametrize('name', ['adaptssr', 'classification'])
def test_draws_depend_neither_on_position_nor_on_device(name):
  batch = make_batch()
  expected = whole(name)(start(), batch, KEY)
  order = np.random.default_rng(1).permutation(USERS)
  assert_same_update(
    whole(name)(start(), reordered(batch, order), KEY), expected
  )
  assert_same_update(on(8, name, reordered(batch, order)), expected)


@pytest.mark.parametrize('name', ['adaptssr', 'masked_items'])
def test_draws_depend_on_the_user_and_on_the_step(name):
  batch = make_batch()
  result = whole(name)(start(), batch, KEY)
  other_users = batch | {'example_id': batch['example_id'] + 1}
  assert differ(whole(name)(start(), other_users, KEY), result)
  assert differ(
    whole(name)(start()._replace(step=jnp.int32(1)), batch, KEY), result
  )
  assert not differ(whole(name)(start(), batch, KEY), result)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_padding_users_change_nothing(name):
  batch = make_batch(counts=11)
  other = jax.tree.map(np.copy, batch)
  other['items'][11:], other['example_id'][11:] = 0, 0
  other['label'][11:] = 0
  expected = whole(name)(start(), batch, KEY)
  assert_same_update(whole(name)(start(), other, KEY), expected)


def test_padding_users_equal_a_smaller_batch():
  batch = make_batch(counts=8)
  alone = reordered(batch, np.arange(8))
  assert_same_update(
    whole('sampled_items')(start(), batch, KEY),
    whole('sampled_items')(start(), alone, KEY),
  )


def test_a_batch_of_padding_updates_nothing():
  batch = make_batch() | {'where': np.zeros(USERS, bool)}
  for name in ('adaptssr', 'masked_items', 'classification'):
    state, metrics = whole(name)(start(), batch, KEY)
    assert float(metrics['loss']) == 0
    for leaf in jax.tree.leaves(state.opt_state.trace):
      assert not np.any(leaf)


def test_users_of_length_1_and_one_user_give_a_finite_update():
  short = make_batch()
  short['items'][:, 1:] = 0
  for batch in (short, make_batch(counts=1)):
    state, metrics = whole('adaptssr')(start(), batch, KEY)
    assert np.isfinite(metrics['loss'])
    for leaf in jax.tree.leaves(state):
      assert np.isfinite(leaf).all()
    assert np.any(state.opt_state.trace['table'])


def test_steps_count_and_move_parameters():
  optimizer = optax.sgd(0.5)

  def loss_fn(params, batch, key):
    loss = params['w'] * batch['x'].sum()
    return loss, {'loss': (loss, jnp.float32(1))}

  state = init_state({'w': jnp.float32(3)}, optimizer)
  for step in (1, 2):
    state, _ = train_step(
      state,
      {'x': jnp.array([1.0, 1.0])},
      KEY,
      loss_fn=loss_fn,
      optimizer=optimizer,
    )
    assert (int(state.step), float(state.params['w'])) == (step, 3 - step)


def test_a_step_is_compiled_once_for_fresh_states_and_its_own_results():
  traced = []

  def count(state, batch):
    traced.append(state)
    return jax.tree.map(lambda leaf: leaf + jax.lax.psum(batch, AXIS), state)

  step = pmap_step(count)
  state = replicate({'a': jnp.zeros(3)})
  for _ in range(3):
    state = step(state, np.ones((8,), np.float32))
  assert len(traced) == 1
  assert state['a'].tolist() == [24.0] * 3


def test_runs_with_other_keys_share_a_compiled_step():
  step = whole('classification')
  batch = make_batch()
  result = step(start(), batch, KEY)
  compiled = step._cache_size()
  assert differ(step(start(), batch, jax.random.key(3)), result)
  assert step._cache_size() == compiled


def test_metrics_of_no_users_are_zero_and_not_nan():
  assert mean_metrics({'loss': (jnp.float32(0), jnp.float32(0))})['loss'] == 0


def test_logits_of_all_devices_are_those_of_one_in_order():
  batch, params = make_batch(), start().params
  logits_of = functools.partial(class_logits, head=HEAD)
  split = {'items': batch['items'].reshape(8, 2, LENGTH)}
  encoding = Encoding(ENCODER, axis_name=AXIS)
  logits = pmap_step(functools.partial(logits_of, encoding=encoding))(
    params, split
  )
  assert logits.shape == (USERS, CLASSES)
  of_one = jax.jit(functools.partial(logits_of, encoding=Encoding(ENCODER)))
  np.testing.assert_allclose(
    logits,
    of_one(params, {'items': batch['items']}),
    rtol=1e-4,
    atol=1e-6,
  )


def test_a_step_is_float32_whatever_the_default():
  def loss(params, batch, key):
    total = jnp.sum(params * batch['x'])
    return total, {'loss': (total, jnp.ones((), jnp.float32))}

  for context in (jax.numpy_dtype_promotion('strict'), jax.enable_x64(True)):
    with context:
      one = jnp.ones(2, jnp.float32)
      found = gradients(loss, one, {'x': one}, jax.random.key(0), None)
    assert found[1]['skipped'].dtype == jnp.float32
