"""Adam on the rows of a batch equals Optax on the full table."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from adaptssr_jax.table.lookup import BatchRows, distinct_ids, look_up
from adaptssr_jax.table.row_adam import apply_pending_rows, row_adam
from tests.bounds import assert_same_training

ROWS, DIM, SLOTS = 200, 3, 20


def zipf_batches(steps, seed=0, least=1e-6):
  """Distinct ids, padded with ROWS, and gradients of very different sizes."""
  rng = np.random.default_rng(seed)
  ids = np.full((steps, SLOTS), ROWS, np.int32)
  for row in ids:
    drawn = np.unique((rng.zipf(1.2, SLOTS) - 1) % (ROWS - 1))
    row[: len(drawn)] = drawn
  scale = 10 ** rng.uniform(np.log10(least), -1, (ROWS + 1, DIM))
  gradients = rng.normal(size=(steps, SLOTS, DIM)) * scale[ids]
  # Gradients of empty slots must be ignored.
  gradients[ids == ROWS] = np.nan
  return jnp.asarray(ids), jnp.asarray(gradients, jnp.float32)


def make_table(rows=ROWS, dim=DIM):
  table = np.random.default_rng(7).normal(size=(rows, dim))
  return jnp.asarray(0.02 * table, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def both(optimizer, dense, table, ids, gradients):
  """Trains by rows and densely; returns the largest gap of gathered rows."""

  def step(carry, batch):
    (rows, state), (whole, dense_state) = carry
    ids, gradients = batch
    now = optimizer.gather(rows, state, ids)
    gap = now - whole.at[ids].get(mode='fill', fill_value=0)
    rows, state = optimizer.update(gradients, state, rows, ids)
    gradients = jnp.zeros_like(whole).at[ids].set(gradients, mode='drop')
    updates, dense_state = dense.update(gradients, dense_state)
    whole = optax.apply_updates(whole, updates)
    return ((rows, state), (whole, dense_state)), jnp.abs(gap).max()

  carry = (table, optimizer.init(table)), (table, dense.init(table))
  (rows, (whole, _)), gaps = lax.scan(step, carry, (ids, gradients))
  return rows, whole, gaps.max()


def shares(difference, moved):
  """The difference relative to the movement: largest element, and norm."""
  difference, moved = np.asarray(difference), np.asarray(moved)
  norm = np.linalg.norm
  return (
    np.abs(difference).max() / np.abs(moved).max(),
    norm(difference) / norm(moved),
  )


# Optax divides 0 by eps where nothing moves, so its eps is not exactly 0.
@pytest.mark.parametrize(
  ('settings', 'least', 'within'),
  [
    ({'eps': 0.0}, 1e-6, 1e-5),
    ({'eps': 0.0, 'b1': 0.5, 'b2': 0.9}, 1e-6, 1e-5),
    ({'eps': 0.0, 'b1': 0.0}, 1e-6, 1e-5),
    ({'eps': 1e-8}, 1e-6, 1e-4),
    ({'eps': 1e-8}, 1e-9, 5e-4),
    ({'eps': 1e-2}, 1e-6, 1e-3),
  ],
)
def test_a_thousand_steps_are_those_of_adam_on_the_whole_table(
  settings, least, within
):
  table = make_table()
  ids, gradients = zipf_batches(1000, least=least)
  dense = optax.adam(1e-3, **settings | {'eps': settings['eps'] or 1e-30})
  optimizer = row_adam(1e-3, **settings)
  (late, state), whole, gap = both(optimizer, dense, table, ids, gradients)
  done = apply_pending_rows(late, state)
  moved = whole - table
  assert max(shares(done - whole, moved)) < within
  assert gap < within * np.abs(moved).max()
  # Relative errors of single elements, small ones included, if they moved.
  far = np.abs(moved) > 1e-2 * np.abs(moved).max()
  assert np.abs((done - whole) / moved)[far].max() < 10 * within
  if settings.get('b1') != 0:
    assert max(shares(late - whole, moved)) > 10 * within
  never = np.setdiff1d(np.arange(ROWS), ids)
  assert 0 < len(never) < ROWS / 2
  np.testing.assert_array_equal(done[never], table[never])
  assert state.count == 1000


def test_a_row_of_every_step_is_rounded_as_by_adam():
  table = make_table(4)
  ids = jnp.tile(jnp.array([3, 1]), (50, 1))
  gradients = jax.random.normal(jax.random.key(0), (50, 2, DIM))
  (rows, state), whole, _ = both(
    row_adam(1e-2), optax.adam(1e-2), table, ids, gradients
  )
  assert_same_training(rows, whole, table, share=1e-5)
  assert jnp.abs(rows - table)[ids[0]].min() > 1e-3
  np.testing.assert_array_equal(state.last, [0, 50, 0, 50])


def drift(m, v, since, missed, lr=0.1, b1=0.9, b2=0.999, eps=1e-8):
  """The movement by single Adam steps without gradients, in float64."""
  moved = np.zeros(len(m))
  for step in range(since + 1, since + missed + 1):
    m, v = b1 * m, b2 * v
    root = np.sqrt(v / (1 - b2**step))
    moved -= lr * m / (1 - b1**step) / (root + eps)
  return moved


@pytest.mark.parametrize('since', [1, 30, 100_000])
@pytest.mark.parametrize('missed', [1, 2, 200, 3000])
def test_pending_updates_equal_single_steps(since, missed):
  # From left to right, eps has a growing share of the denominator.
  gradients = np.array([1.0, -1e-3, 1e-6, 1e-9, 1e-15])
  optimizer = row_adam(0.1)
  table, none = jnp.zeros((1, 5)), jnp.zeros(0, int)
  state = optimizer.init(table)._replace(count=jnp.int32(since - 1))
  table, state = optimizer.update(
    jnp.asarray(gradients, jnp.float32)[None], state, table, jnp.array([0])
  )
  here = table[0]
  m, v = np.asarray([state.mu[0], state.nu[0]], np.float64)
  state = state._replace(count=jnp.int32(since + missed - 1))
  table, state = optimizer.update(jnp.zeros((0, 5)), state, table, none)
  there = apply_pending_rows(table, state)[0]
  expected = drift(m, v, since, missed)
  assert (np.sign(expected) == -np.sign(gradients)).all()
  assert np.abs(expected[:2]).min() > 0.05
  error = np.abs((there - here) / expected - 1)
  assert error[:2].max() < 2e-5
  assert error.max() < 1e-2 / since + 1e-5


def test_many_pending_updates_are_exact():
  """Powers of the decays do not lose precision and do not become nan."""
  optimizer = row_adam(0.1)
  table, ids = jnp.zeros((2, 1)), jnp.array([1])
  _, state = optimizer.update(
    jnp.ones((1, 1)), optimizer.init(table), table, ids
  )
  for count in (20_000, 1_000_000, 10_000_000):
    late = state._replace(count=jnp.int32(count))
    applied = apply_pending_rows(table, late)
    assert applied[1, 0] < -0.1
    np.testing.assert_array_equal(applied[0], 0)
    rows, late = optimizer.update(jnp.zeros((1, 1)), late, table, ids)
    nu = 0.001 * float(np.float32(0.999)) ** count
    np.testing.assert_allclose(late.nu[1, 0], nu, rtol=1e-5, atol=1e-37)
    # Nothing is pending for a row of the last step.
    assert rows[1, 0] == apply_pending_rows(rows, late)[1, 0] < -0.1


@functools.cache
def some_steps():
  ids, gradients = zipf_batches(30)
  optimizer = row_adam(1e-3)
  dense = optax.adam(1e-3)
  (rows, state), *_ = both(optimizer, dense, make_table(), ids, gradients)
  return optimizer, rows, state


def test_pending_updates_of_several_blocks_leave_the_arguments_unchanged():
  optimizer, table = row_adam(0.1), make_table(16_390)
  state, update = optimizer.init(table), jax.jit(optimizer.update)
  # One step each, so all rows except the last ones have pending updates.
  for ids in jnp.array([[1, 16_383], [16_384, 16_389], [7, 8]]):
    table, state = update(jnp.ones((2, DIM)), state, table, ids)
  before = jax.tree.map(np.array, (table, state))
  whole = apply_pending_rows(table, state)
  chex.assert_trees_all_equal((table, state), before)
  expected = optimizer.gather(table, state, jnp.arange(len(table)))
  np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-6)
  moved = np.abs(whole - table).max(axis=1)
  behind = [1, 16_383, 16_384, 16_389]
  assert np.flatnonzero(moved > 1e-3).tolist() == behind


def test_empty_slots_change_nothing():
  optimizer, table, state = some_steps()
  ids, gradients = jnp.array([5, 0]), jnp.ones((2, DIM))
  more = jnp.array([ROWS, 5, ROWS, 0, ROWS + 9])
  values = jnp.full((5, DIM), jnp.nan).at[jnp.array([1, 3])].set(gradients)
  plain = optimizer.update(gradients, state, table, ids)
  chex.assert_trees_all_equal(
    optimizer.update(values, state, table, more), plain
  )
  rows = optimizer.gather(table, state, more)
  np.testing.assert_array_equal(rows[jnp.array([0, 2, 4])], 0)
  expected = optimizer.gather(table, state, ids)
  np.testing.assert_array_equal(rows[jnp.array([1, 3])], expected)


def test_only_rows_of_the_batch_are_written():
  optimizer, table, state = some_steps()
  ids = jnp.array([7, 3])
  new, new_state = optimizer.update(jnp.ones((2, DIM)), state, table, ids)
  others = np.setdiff1d(np.arange(ROWS), ids)
  for field in ('mu', 'nu', 'last', 'to_come'):
    written, before = getattr(new_state, field), getattr(state, field)
    np.testing.assert_array_equal(written[others], before[others])
    assert (written != before)[ids].all(), field
  np.testing.assert_array_equal(new[others], table[others])
  assert (new != table)[ids].all()
  np.testing.assert_array_equal(new_state.last[ids], state.count + 1)
  np.testing.assert_array_equal(optimizer.gather(new, new_state, ids), new[ids])


def test_a_step_that_is_left_out_changes_nothing():
  optimizer, table, state = some_steps()
  nothing = jnp.full((2, DIM), jnp.nan)
  new, new_state = optimizer.update(
    nothing, state, table, jnp.array([7, 3]), where=False
  )
  np.testing.assert_allclose(
    new_state.to_come_now, state.to_come_now, rtol=1e-6
  )
  new_state = new_state._replace(to_come_now=state.to_come_now)
  chex.assert_trees_all_equal((new, new_state), (table, state))


def test_jit_or_not():
  optimizer, table, state = some_steps()
  ids, gradients = zipf_batches(1, seed=1)
  args = gradients[0], state, table, ids[0]
  trees = optimizer.update(*args), jax.jit(optimizer.update)(*args)
  for leaf, other in zip(*map(jax.tree.leaves, trees), strict=True):
    np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-8)


def test_an_element_without_gradients_does_not_move_even_if_eps_is_0():
  optimizer = row_adam(0.1, eps=0.0)
  table, ids = jnp.ones((1, 2)), jnp.array([0])
  state = optimizer.init(table)
  for gradients in ([[0.0, 2.0]], [[0.0, 0.0]]):
    table, state = optimizer.update(jnp.array(gradients), state, table, ids)
  assert table[0, 0] == 1
  assert table[0, 1] < 0.9


def whole_step(optimizer, table, state, ids):
  rows = optimizer.gather(table, state, ids)
  return optimizer.update(jnp.sin(rows), state, table, ids)


def test_the_table_is_not_copied():
  """A step writes in place, with memory for a few rows."""
  optimizer, table = row_adam(0.1), jnp.zeros((40_009, 8))
  state = optimizer.init(table)
  step = functools.partial(whole_step, optimizer)
  jitted = jax.jit(step, donate_argnums=(0, 1))
  compiled = jitted.lower(table, state, jnp.arange(50)).compile()
  arrays = sum(leaf.nbytes for leaf in jax.tree.leaves((table, state)))
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes > 0.99 * arrays
  assert not re.findall(r'\[40009\S* copy\(', compiled.as_text())


@pytest.mark.parametrize('decays', [(0.9, 0.9), (-0.1, 0.9), (0.9, 1.0)])
def test_decays_whose_sums_diverge_are_refused(decays):
  with pytest.raises(ValueError, match='0 <= b1 < b2 < 1 must hold, not b1='):
    row_adam(0.1, *decays)


BEYOND = np.iinfo(np.int32).max


@pytest.mark.parametrize('masked', [0.0, 0.3])
def test_distinct_ids(masked):
  rng = np.random.default_rng(3)
  known = np.array([2, 3, 5, 40, 97, 98], np.int32)
  items = rng.permuted(np.tile(np.append(known, [0, 0]), 3)).reshape(4, 6)
  items[rng.random(items.shape) < masked] = 99
  assert set(known) <= set(items.ravel())
  ids = distinct_ids(jnp.asarray(items), mask_id=99)
  np.testing.assert_array_equal(ids, [0, *known, 99, *[BEYOND] * 18])
  assert ids.dtype == jnp.int32
  rows = look_up(BatchRows(ids, 2.0 * ids[:, None]), jnp.asarray(items))
  np.testing.assert_array_equal(rows[..., 0], 2 * items)


@pytest.mark.parametrize(
  ('items', 'expected'),
  [
    ([9, 4, 1, 7], [0, 1, 4, 7, 9, 50]),
    ([[0, 50], [0, 0]], [0, 50] + [BEYOND] * 4),
    (np.zeros((0, 3), int), [0, 50]),
  ],
)
def test_there_is_room_for_all_ids_and_for_padding_and_mask(items, expected):
  ids = distinct_ids(jnp.array(items, int), mask_id=50)
  np.testing.assert_array_equal(ids, expected)


def test_there_are_no_more_ids_than_rows():
  ids = distinct_ids(jnp.array([3, 1, 2, 3, 1, 2, 4]), mask_id=4)
  np.testing.assert_array_equal(ids, [0, 1, 2, 3, 4])


def test_an_id_beyond_the_mask_is_nan():
  items = jnp.array([7, 51, 3])
  ids = distinct_ids(items, mask_id=50)
  np.testing.assert_array_equal(ids, [0, 3, 7, 50, BEYOND])
  rows = look_up(BatchRows(ids, jnp.ones((5, 1))), items)
  assert jnp.isnan(rows[:, 0]).tolist() == [False, True, False]


def test_an_item_without_a_row_is_nan():
  table = BatchRows(jnp.array([0, 4, 9, 10]), jnp.ones((4, 2)))
  rows = look_up(table, jnp.array([0, 3, 4, 5, 9, 11]))
  assert jnp.isnan(rows).all(axis=1).tolist() == [
    False,
    True,
    False,
    True,
    False,
    True,
  ]


def loss(rows):
  return jnp.sum(jnp.tanh(rows) * jnp.arange(1.0, DIM + 1)[None, None])


@functools.partial(jax.jit, static_argnums=(0, 1))
def both_from_items(optimizer, dense, rows, whole, items):
  table, state = rows
  ids = distinct_ids(items, mask_id=29)
  gradients = jax.grad(lambda rows: loss(look_up(BatchRows(ids, rows), items)))(
    optimizer.gather(table, state, ids)
  )
  rows = optimizer.update(gradients, state, table, ids)
  table, state = whole
  updates, state = dense.update(
    jax.grad(lambda table: loss(table[items]))(table), state
  )
  return rows, (optax.apply_updates(table, updates), state)


def test_the_rows_of_a_batch_train_as_the_whole_table():
  """Gathers rows, differentiates and updates them, as a training step does."""
  optimizer, dense = row_adam(1e-2), optax.adam(1e-2)
  table = make_table(30)
  rows, whole = (table, optimizer.init(table)), (table, dense.init(table))
  for n in range(6):
    items = jax.random.randint(jax.random.key(n), (2, 4), 0, 30)
    rows, whole = both_from_items(optimizer, dense, rows, whole, items)
  assert_same_training(apply_pending_rows(*rows), whole[0], table, share=1e-4)
