"""Batches are a pure function of the seed and the step."""

import time

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays, batch_at, steps_per_epoch
from adaptssr_jax.data.prepared.batches import users_per_device

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
  """The rows of an epoch, batch by batch, without padding."""
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
  # No epoch is a shifted or reversed copy of another.
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


def test_a_random_window_is_a_run_of_the_behaviours_drawn_anew():
  rows = [list(range(10, 30)), [1, 2], list(range(40, 45))]
  users = UserArrays(None, Ragged.from_rows(rows))
  starts = set()
  for step in range(40):
    batch = batch_at(
      users,
      step,
      batch_size=3,
      length=5,
      num_devices=1,
      seed=1,
      window='random',
    )
    for row, items in zip(
      batch['example_id'][0], batch['items'][0], strict=True
    ):
      kept = items[items > 0].tolist()
      start = rows[row].index(kept[0])
      assert kept == rows[row][start : start + 5]
      starts.add((int(row), start))
  # Expects every window of the long user, and the only one of each other user.
  assert starts == {(0, start) for start in range(16)} | {(1, 0), (2, 0)}


@pytest.mark.parametrize(
  ('name', 'longest', 'width'), [('targets', 6, 8), ('positives', 3, 4)]
)
def test_lists_are_as_wide_in_every_batch_of_a_split(name, longest, width):
  lists = [list(range(row, row + 1 + row % longest)) for row in range(USERS)]
  users = make_users()._replace(label=None, **{name: Ragged.from_rows(lists)})
  seen = 0
  for step in range(3):
    columns = joined(batch(step, users, num_devices=4))
    # The longest, rounded up to a power of two.
    assert columns[name].shape == (BATCH, width)
    assert columns[name].dtype == np.int32
    for at, real in enumerate(columns['where']):
      own = lists[columns['example_id'][at]] if real else []
      assert columns[name][at].tolist() == own + [-1] * (width - len(own))
      seen += real
  assert seen == USERS


@pytest.mark.parametrize(('longest', 'width'), [(1, 1), (2, 2), (5, 8)])
def test_the_width_of_targets_is_a_power_of_two(longest, width):
  targets = Ragged.from_rows([[0], list(range(longest))])
  users = UserArrays(None, Ragged.from_rows([[1], [2]]), targets=targets)
  part = batch(0, users, batch_size=2)
  assert part['targets'].shape == (1, 2, width)


def test_batches_are_made_faster_than_any_step_takes_them():
  # 50,000 users a second on one core is what is promised; a quiet one makes a
  # million, so that a busy one is no reason to fail.
  lengths = np.random.default_rng(0).integers(10, 100, 20_000, endpoint=True)
  values = np.arange(lengths.sum(), dtype=np.int32)
  users = UserArrays(None, Ragged.from_lengths(values, lengths))
  for size in (128, 1024):
    seconds = []
    for step in range(15):
      began = time.perf_counter()
      batch(step, users, batch_size=size, length=100)
      seconds.append(time.perf_counter() - began)
    assert size / min(seconds) > 50_000


@pytest.mark.parametrize('window', ['last', 'random'])
def test_processes_read_the_parts_of_one_batch(window):
  users = UserArrays(None, Ragged.from_rows([[i] * (i % 7) for i in range(45)]))
  settings = {'batch_size': 16, 'length': 4, 'num_devices': 8, 'seed': 3}
  settings |= {'window': window}
  for step in (0, 2):
    whole = batch_at(users, step, **settings)
    parts = [batch_at(users, step, **settings, part=(i, 4)) for i in range(4)]
    for name, column in whole.items():
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(joined, column)
      assert parts[0][name].shape[:2] == (2, 2)
