"""Users with the same last item: finding them and drawing one."""

import functools

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays, batch_at
from adaptssr_jax.data.prepared.batches import by_last_item, draw_partners

# 40 users with up to 5 behaviours: 4 last items are shared, and 9 is not.
LENGTH = 4
RNG = np.random.default_rng(0)
ROWS = [RNG.integers(1, 5, row % 6).tolist() for row in range(40)] + [[1, 2, 9]]
ITEMS = Ragged.from_rows(ROWS)
USERS = UserArrays(None, ITEMS, by_last_item=by_last_item(ITEMS))


def others(user):
  """All users that may be drawn, by the definition."""
  found = [
    other
    for other, row in enumerate(ROWS)
    if other != user and len(row) > 1 and row[-1:] == ROWS[user][-1:]
  ]
  return found if found and len(ROWS[user]) > 1 else [user]


def test_every_other_user_with_the_same_last_item_and_nobody_else():
  rows = np.repeat(np.arange(len(ROWS)), 400)
  draws = np.tile(np.arange(400) / 400, len(ROWS))
  found = draw_partners(ITEMS, USERS.by_last_item, rows, draws)
  for user, partners in enumerate(found.reshape(-1, 400)):
    seen, counts = np.unique(partners, return_counts=True)
    assert seen.tolist() == others(user)
    # Evenly spaced draws select each partner equally often.
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize('rows', [[[1], [1]], [[], []], [[2, 1], [1]]])
def test_nobody_else(rows):
  items = Ragged.from_rows(rows)
  partners = draw_partners(
    items, by_last_item(items), np.arange(2), np.full(2, 0.99)
  )
  assert partners.tolist() == [0, 1]


def batch(step=3, users=USERS, **changes):
  settings = {
    'batch_size': 16,
    'length': LENGTH,
    'num_devices': 4,
    'seed': 5,
  }
  return batch_at(users, step, **settings | changes)


def test_a_batch_holds_the_behaviours_of_the_partners():
  for step in range(3):
    found = batch(step)
    assert found['partner_items'].dtype == np.int32
    assert found['partner_items'].shape == (4, 4, LENGTH)
    flat = {
      name: values.reshape(-1, *values.shape[2:])
      for name, values in found.items()
    }
    for user, where, items in zip(
      flat['example_id'], flat['where'], flat['partner_items'], strict=True
    ):
      shown = [int(item) for item in items if item]
      may_be = [ROWS[other][-LENGTH:] for other in others(user)]
      assert shown in may_be if where else not shown


def test_all_else_of_a_batch_is_as_without_partners():
  plain = batch(users=USERS._replace(by_last_item=None), window='random')
  assert 'partner_items' not in plain
  for name, values in plain.items():
    np.testing.assert_array_equal(batch(window='random')[name], values)


def test_partners_depend_on_seed_and_step_and_on_no_device():
  first = batch()['partner_items']
  np.testing.assert_array_equal(batch()['partner_items'], first)
  for devices in (1, 2, 8):
    again = batch(num_devices=devices)['partner_items']
    np.testing.assert_array_equal(
      again.reshape(-1, LENGTH), first.reshape(-1, LENGTH)
    )
  parts = [batch(part=(part, 2))['partner_items'] for part in range(2)]
  np.testing.assert_array_equal(np.concatenate(parts), first)
  assert (batch(seed=6)['partner_items'] != first).any()


def test_each_epoch_draws_anew():
  # The stored order keeps positions in the batch the same.
  show = functools.partial(batch, seed=None, batch_size=48)
  first, second = (show(step)['partner_items'] for step in (0, 1))
  assert (first != second).any()


def test_the_first_rows_have_no_partners():
  assert USERS.first(10).by_last_item is None
  assert len(USERS.first(10).items) == 10
