"""Batches are a pure function of the seed and the step."""

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays, batch_at, steps_per_epoch
from adaptssr_jax.data.batches import users_per_device

USERS, BATCH, LENGTH = 21, 8, 4
ROWS = [[100 * row + at + 1 for at in range(row % 7)] for row in range(USERS)]


def make_users(rows=ROWS):
  label = np.arange(len(rows), dtype=np.int32) % 3
  return UserArrays(None, Ragged.from_rows(rows), label)


def batch(step, users=None, **changes):
  settings = {
    'batch_size': BATCH,
    'length': LENGTH,
    'num_devices': 1,
    'seed': 5,
  }
  return batch_at(users or make_users(), step, **settings | changes)


def joined(parts):
  return {
    name: column.reshape(-1, *column.shape[2:])
    for name, column in parts.items()
  }


def assert_equal(batch, other):
  assert batch.keys() == other.keys()
  for name, column in batch.items():
    np.testing.assert_array_equal(column, other[name])


def seen(epoch, **changes):
  """The rows of an epoch in the order of its batches, without padding."""
  per_epoch = steps_per_epoch(USERS, changes.get('batch_size', BATCH))
  parts = [batch(epoch * per_epoch + step, **changes) for step in range(3)]
  return np.concatenate([part['example_id'][part['where']] for part in parts])


def test_order_of_the_calls_does_not_matter():
  forward = [batch(step) for step in range(9)]
  backward = [batch(step) for step in reversed(range(9))][::-1]
  for part, other in zip(forward, backward, strict=True):
    assert_equal(part, other)


def test_every_epoch_shows_every_user_once():
  for epoch in (0, 1, 50):
    assert sorted(seen(epoch)) == list(range(USERS))


def test_epochs_and_seeds_have_orders_of_their_own():
  orders = [seen(0), seen(1), seen(0, seed=6)]
  assert len({tuple(order) for order in orders}) == 3
  # An epoch is no shifted or reversed copy of another.
  assert len({tuple(np.diff(order)) for order in orders}) == 3


def test_no_seed_keeps_the_stored_order():
  for epoch in (0, 3):
    assert seen(epoch, seed=None).tolist() == list(range(USERS))


@pytest.mark.parametrize('devices', [2, 4, 8])
@pytest.mark.parametrize('step', [0, 2])
def test_the_global_batch_is_that_of_one_device(devices, step):
  parts = batch(step, num_devices=devices)
  assert parts['items'].shape == (devices, BATCH // devices, LENGTH)
  assert parts['where'].shape == (devices, BATCH // devices)
  assert_equal(joined(parts), joined(batch(step)))


def test_last_batch_is_padded_with_users_that_do_not_count():
  last = joined(batch(2))
  assert last['where'].tolist() == [True] * 5 + [False] * 3
  for name in ('items', 'example_id', 'label'):
    assert not last[name][5:].any()
    assert last[name].shape[0] == BATCH


def test_rows_carry_their_last_behaviours_and_their_label():
  users = make_users()
  for step in range(3):
    columns = joined(batch(step, users))
    for at in np.flatnonzero(columns['where']):
      row = columns['example_id'][at]
      kept = ROWS[row][-LENGTH:]
      assert columns['items'][at].tolist() == kept + [0] * (LENGTH - len(kept))
      assert columns['label'][at] == row % 3


def test_types_are_those_of_devices():
  types = {name: column.dtype for name, column in batch(0).items()}
  assert types == {
    'items': np.int32,
    'where': bool,
    'example_id': np.int32,
    'label': np.int32,
  }


def test_users_without_labels_give_batches_without():
  users = make_users()._replace(label=None)
  assert set(batch(0, users)) == {'items', 'where', 'example_id'}


@pytest.mark.parametrize(
  ('users', 'batch_size', 'steps'), [(21, 8, 3), (16, 8, 2), (1, 8, 1)]
)
def test_steps_per_epoch(users, batch_size, steps):
  assert steps_per_epoch(users, batch_size) == steps


def test_a_batch_of_one():
  part = batch(3, batch_size=1)
  assert part['items'].shape == (1, 1, LENGTH)
  assert part['where'].all()


@pytest.mark.parametrize(
  ('batch_size', 'devices', 'nearest'),
  [(10, 8, '8 or 16'), (3, 8, '8'), (31, 8, '24 or 32'), (5, 2, '4 or 6')],
)
def test_uneven_split_names_the_nearest_sizes(batch_size, devices, nearest):
  message = f'{batch_size} users.*{devices} devices: take {nearest}$'
  with pytest.raises(ValueError, match=message):
    users_per_device(batch_size, devices)
  with pytest.raises(ValueError, match=message):
    batch(0, batch_size=batch_size, num_devices=devices)
