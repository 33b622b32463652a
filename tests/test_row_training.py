"""Updating the rows of the batch equals updating the full table."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.table.row_adam import row_adam
from adaptssr_jax.training.devices import AXIS, replicate
from adaptssr_jax.training.row_step import apply_pending_updates, row_train_step
from adaptssr_jax.training.step import pmap_step, train_step
from tests.bounds import assert_same_training
from tests.quick_objective import (
  ADAM,
  LENGTH,
  quick_objective,
  random_batch,
  restore,
  save,
  start_dense,
  start_rows,
  train,
)
from tests.random_params import random_params

ITEMS, STEPS = 300, 6
ENCODER = UserEncoder(ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1)


# `test_speed` and `test_table_shards` train real objectives by rows.
loss_of = functools.partial(quick_objective, encoding=Encoding(ENCODER))
batch_of = functools.partial(random_batch, num_items=ITEMS)


@pytest.fixture(scope='module')
def params():
  return model_params(random_params(ENCODER, batch_of(0)['items']))


dense_step = functools.partial(
  train_step, loss_fn=loss_of, optimizer=optax.adam(*ADAM)
)
row_step = functools.partial(
  row_train_step,
  optimizer=optax.adam(*ADAM),
  table_optimizer=row_adam(*ADAM),
  mask_id=ENCODER.mask_id,
)


def run(step, state, steps=range(STEPS), devices=None):
  return train(step, state, [batch_of(i, devices=devices) for i in steps])


@pytest.fixture(scope='module')
def dense(params):
  return run(jax.jit(dense_step), start_dense(params))


step_by_rows = jax.jit(functools.partial(row_step, loss_fn=loss_of))


@pytest.fixture(scope='module')
def by_rows(params):
  return run(step_by_rows, start_rows(params))


def test_same_losses_and_parameters(params, dense, by_rows):
  state, losses = by_rows
  np.testing.assert_allclose(losses, dense[1], rtol=1e-5)
  assert_same_training(apply_pending_updates(state), dense[0].params, params)
  # Without pending updates, the difference exceeds the bound.
  with pytest.raises(AssertionError, match='off, where entries moved by'):
    assert_same_training(state.params, dense[0].params, params)


def test_same_on_eight_devices(params, by_rows):
  loss_fn = functools.partial(
    quick_objective, encoding=Encoding(ENCODER, axis_name=AXIS)
  )
  step = functools.partial(row_step, loss_fn=loss_fn, axis_name=AXIS)
  state, losses = run(
    pmap_step(step, num_replicated_args=1),
    replicate(start_rows(params)),
    devices=8,
  )
  np.testing.assert_allclose(losses, by_rows[1], rtol=1e-5)
  assert_same_training(
    apply_pending_updates(state), apply_pending_updates(by_rows[0]), params
  )


def test_applying_pending_updates_does_not_change_the_state(by_rows):
  state, _ = by_rows
  before = jax.tree.map(np.array, state)
  whole = apply_pending_updates(state)
  chex.assert_trees_all_equal(state, before)
  late = state.params['table']
  assert jnp.abs(late - whole['table']).max() > 1e-3


def test_a_dense_state_has_no_pending_updates(dense):
  assert apply_pending_updates(dense[0]) is dense[0].params


def test_a_checkpoint_resumes_to_the_bit_and_applies_pending_updates(
  params, by_rows, tmp_path
):
  state, _ = run(step_by_rows, start_rows(params), range(3))
  save(state, tmp_path, ENCODER)
  restored = restore(start_rows(params), tmp_path)
  chex.assert_trees_all_equal(restored, state)
  again, _ = run(step_by_rows, restored, range(3, STEPS))
  chex.assert_trees_all_equal(again, by_rows[0])

  _, restored, _ = restore_encoder(tmp_path)
  expected = encoder_params(apply_pending_updates(state))
  chex.assert_trees_all_equal(restored, expected)
  late = state.params['table']
  assert jnp.abs(late - expected['item_embedding']).max() > 1e-3
