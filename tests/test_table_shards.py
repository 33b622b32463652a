"""A table sharded over devices trains as a replicated one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.causal_items import causal_items_objective
from adaptssr_jax.objectives.masked_items import (
  init_masked_items,
  masked_items_objective,
)
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.table.exchange import fetch_rows, gather_gradients
from adaptssr_jax.table.lookup import (
  encoder_params,
  model_params,
  with_batch_rows,
)
from adaptssr_jax.table.row_adam import row_adam
from adaptssr_jax.table.shards import Shards, rows_per_device
from adaptssr_jax.table.softmax import sample_items
from adaptssr_jax.training.devices import (
  AXIS,
  init_in_parts,
  replicate,
  shard,
  to_global,
)
from adaptssr_jax.training.row_step import apply_pending_updates, row_train_step
from adaptssr_jax.training.step import init_state, pmap_step, train_step
from experiments.planning.counting import sent_of
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
from tests.random_params import widened

# 37 rows on 8 devices: 5 per device, with 3 padding rows in all.
ITEMS, STEPS = 35, 4
# Without dropout, which compiles slowly and does not depend on the table.
ENCODER = UserEncoder(
  ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1, dropout_rate=0.0
)

quick = functools.partial(
  quick_objective, encoding=Encoding(ENCODER, axis_name=AXIS)
)
masked_items = functools.partial(
  masked_items_objective, encoding=Encoding(ENCODER, axis_name=AXIS)
)
causal_items = functools.partial(
  causal_items_objective,
  encoding=Encoding(ENCODER.clone(causal=True), axis_name=AXIS),
)
batch_of = functools.partial(random_batch, num_items=ITEMS, devices=8)
sample = functools.partial(sample_items, num_sampled=6, num_ids=ENCODER.mask_id)


@pytest.fixture(scope='module')
def params():
  init = jax.jit(ENCODER.init)
  params = init(jax.random.key(0), batch_of(0)['items'][0])['params']
  head = {'head': init_masked_items(ENCODER)}
  return model_params(widened(params)) | head


def split_table(params):
  return params | {'table': shard(params['table'])}


def joined(params):
  """All rows of a sharded table, without padding rows."""
  params = jax.tree.map(np.asarray, to_global(params))
  assert not params['table'][ITEMS + 2 :].any()
  return params | {'table': params['table'][: ITEMS + 2]}


def run(step, state):
  step = pmap_step(step, num_replicated_args=1)
  return train(step, replicate(state), map(batch_of, range(STEPS)))


def rows_of(loss_fn, **settings):
  return functools.partial(
    row_train_step,
    loss_fn=loss_fn,
    optimizer=optax.adam(*ADAM),
    table_optimizer=row_adam(*ADAM),
    mask_id=ENCODER.mask_id,
    axis_name=AXIS,
    **settings,
  )


@pytest.fixture(scope='module')
def split_rows(params):
  step = rows_of(quick, prepare=sample)
  return run(step, start_rows(split_table(params)))


def test_rows_of_a_sharded_table(params, split_rows):
  state, losses = split_rows
  step = rows_of(quick, prepare=sample)
  whole, expected = run(step, start_rows(params))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  trained = joined(apply_pending_updates(state))
  assert_same_training(trained, apply_pending_updates(whole), params)
  # Without pending updates, the difference exceeds the bound.
  with pytest.raises(AssertionError, match='off, where entries moved by'):
    assert_same_training(
      joined(state.params), apply_pending_updates(whole), params
    )
  # Each device holds only its shard.
  for name in ('mu', 'nu', 'last', 'to_come'):
    array = getattr(state.opt_state.table, name).rows
    assert {part.data.shape[:2] for part in array.addressable_shards} == {
      (1, 5)
    }


def train_dense(loss_fn, params, optimizer, prepare=None):
  step = functools.partial(
    train_step,
    loss_fn=loss_fn,
    optimizer=optimizer,
    axis_name=AXIS,
    prepare=prepare,
  )
  return run(step, init_state(params, optimizer))


def test_a_softmax_over_all_items_needs_the_whole_table(params):
  step = rows_of(masked_items)
  with pytest.raises(ValueError, match='estimate it from sampled items'):
    run(step, start_rows(params))


def train_split(loss_fn, params, optimizer, prepare=None):
  loss_fn = with_batch_rows(loss_fn, mask_id=ENCODER.mask_id, axis_name=AXIS)
  state, losses = train_dense(loss_fn, split_table(params), optimizer, prepare)
  assert isinstance(state.opt_state[0].mu['table'], Shards)
  return losses, joined(state.params)


@pytest.mark.parametrize(
  'loss_fn', [masked_items, causal_items], ids=['masked', 'causal']
)
def test_dense_updates_of_a_sharded_table(params, loss_fn):
  optimizer = optax.adamw(*ADAM[:3], eps=1e-3, weight_decay=0.1)
  whole, expected = train_dense(loss_fn, params, optimizer)
  losses, trained = train_split(loss_fn, params, optimizer)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert_same_training(trained, whole.params, params)


def test_a_sampled_softmax_with_row_and_dense_updates_of_shards(params):
  optimizer, of_rows = optax.adam(*ADAM), start_rows(split_table(params))
  dense, expected = train_dense(masked_items, params, optimizer, sample)
  state, losses = run(rows_of(masked_items, prepare=sample), of_rows)
  by_rows = losses, joined(apply_pending_updates(state))
  split = train_split(masked_items, params, optimizer, sample)
  for losses, trained in (by_rows, split):
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same_training(trained, dense.params, params)


def test_a_checkpoint_restores_with_and_without_sharding(
  params, split_rows, tmp_path
):
  state, _ = split_rows
  split_like = replicate(start_rows(split_table(params)))
  save(state, tmp_path / 'split', ENCODER)
  again = restore(split_like, tmp_path / 'split')
  chex.assert_trees_all_equal(again, state)
  whole = restore(replicate(start_rows(params)), tmp_path / 'split')
  chex.assert_trees_all_equal(whole.params, joined(state.params))
  save(whole, tmp_path / 'whole', ENCODER)
  back = restore(split_like, tmp_path / 'whole')
  chex.assert_trees_all_equal(joined(back.params), joined(state.params))
  for again in (back, whole):
    assert_same_training(
      joined(apply_pending_updates(again)),
      joined(apply_pending_updates(state)),
      params,
    )

  encoder, restored, _ = restore_encoder(tmp_path / 'split')
  assert encoder == ENCODER
  expected = encoder_params(joined(apply_pending_updates(state)))
  assert_same_training(restored, expected, encoder_params(params))


@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize('start', [start_dense, start_rows])
def test_a_checkpoint_of_another_number_of_devices(
  params, tmp_path, start, devices
):
  """It has another number of padding rows, which are zeros."""
  num_rows = ITEMS + 2
  extra = devices * rows_per_device(num_rows, devices) - num_rows

  def with_padding(leaf):
    if not leaf.ndim or len(leaf) != num_rows:
      return leaf
    return jnp.append(leaf, jnp.zeros_like(leaf[:extra]), axis=0)

  state = jax.tree.map(
    lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), start(params)
  )
  save(jax.tree.map(with_padding, state), tmp_path, ENCODER)
  for like in (params, split_table(params)):
    restored = to_global(restore(replicate(start(like)), tmp_path))
    jax.tree.map(
      lambda found, wanted: np.testing.assert_array_equal(
        found[: len(wanted)] if wanted.ndim else found, wanted
      ),
      restored,
      state,
    )


# A few rows of each device; all rows of one device, within its capacity; and
# beyond its capacity, so that an all-gather is used.
@pytest.mark.parametrize('spread', [[0, 38], [5, 13], [40, 48]], ids=str)
def test_rows_are_fetched_and_their_gradients_returned(spread):
  num_items = 37 if spread[1] < 40 else 150
  table = np.arange(num_items * 2, dtype=np.float32).reshape(num_items, 2)
  rng = np.random.default_rng(0)
  ids = [np.sort(rng.permutation(np.arange(*spread))[:6]) for _ in range(8)]
  ids = np.array(ids, np.int32)
  ids[0, 4:] = np.iinfo(np.int32).max
  step = functools.partial(fetch_and_send, axis_name=AXIS)
  fetched, sums = pmap_step(step)(shard(table), ids)
  known = np.where(ids < num_items, ids, num_items)
  expected = np.append(table, [[0, 0]], axis=0)[known]
  np.testing.assert_array_equal(fetched.rows, expected)
  # The gradient of each fetched row is the row itself.
  size = sums.rows.shape[0] * sums.rows.shape[1]
  counts = np.bincount(known.reshape(-1), minlength=size + 1)[:size, None]
  expected = counts * np.pad(table, ((0, size - num_items), (0, 0)))
  np.testing.assert_array_equal(sums.rows.reshape(size, 2), expected)


def make_params(key):
  draw = functools.partial(jax.random.normal, key)
  return {'table': draw((ITEMS + 2, 4)), 'encoder': {'query': draw((3,))}}


def test_a_table_is_initialised_in_shards():
  params = init_in_parts(make_params, jax.random.key(3))
  rows = params['table'].rows
  assert rows.shape[0] == len(rows.sharding.device_set) == 8
  expected = jax.jit(make_params)(jax.random.key(3))
  table = rows.reshape(-1, rows.shape[-1])
  np.testing.assert_array_equal(
    table[: len(expected['table'])], expected['table']
  )
  assert not table[len(expected['table']) :].any()
  chex.assert_trees_all_equal(params['encoder'], expected['encoder'])


def test_what_a_device_sends_does_not_grow_with_the_number_of_devices():
  ids = np.tile(np.arange(0, 640, 10, dtype=np.int32), (8, 1))
  step = pmap_step(functools.partial(fetch_and_send, axis_name=AXIS))
  program = step.lower(shard(np.zeros((640, 4), np.float32)), ids).compile()
  sent = sent_of(program.as_text(), devices=8)
  assert set(sent) == {'all-to-all', 'all-reduce'}
  # Twice the even share of ids, of their rows, and of the gradients of these.
  assert sent['all-to-all'] <= 7 / 8 * 2 * 64 * (2 * 4 + 2 * 4 * 4)


def fetch_and_send(shards, ids, *, axis_name):
  exchange = {'num_rows': len(shards.rows), 'axis_name': axis_name}
  rows = fetch_rows(
    lambda places: shards.rows.at[places].get(mode='fill', fill_value=0),
    ids,
    **exchange,
  )
  sums, places = gather_gradients(rows, ids, **exchange)
  placed = jnp.zeros_like(shards.rows).at[places].set(sums, mode='drop')
  return Shards(rows), Shards(placed)
