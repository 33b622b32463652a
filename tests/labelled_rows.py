"""A plain implementation that lists the rows of a ranking task one by one."""

import numpy as np

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.data.synthetic_users import (
  SIZES,
  make_next_items,
  make_users,
)


def lists(ragged):
  """The rows of a `Ragged` as lists."""
  return [ragged[row].tolist() for row in range(len(ragged))]


def arrays_of(rows):
  """Converts `Rows` to what preparing and opening them gives."""
  ids = [list(user.encode()) for user in rows.user_id]
  columns = rows._replace(user_id=Ragged.from_rows(ids, np.uint8))
  return UserArrays(**columns._asdict())


def rows_of(users):
  """(user, items, positive, its other targets) of each row of a split.

  Args:
    users: `Rows` or `UserArrays`, one example a user.

  Returns:
    The rows, in the order of the split.
  """
  rows = {}
  for at in range(len(users.items)):
    user = users.user_id[at]
    if not isinstance(user, str):
      user = user.tobytes().decode()
    for positive, place in zip(
      users.positives[at].tolist(), users.places[at].tolist(), strict=True
    ):
      others = set(users.targets[at].tolist()) - {positive}
      assert place not in rows
      rows[place] = user, users.items[at].tolist(), positive, others
  assert sorted(rows) == list(range(len(rows)))
  return [rows[place] for place in range(len(rows))]


def synthetic_clicks(split_seed):
  """The rows of synthetic_users/tiny_click, split one by one.

  Returns:
    Each row by its number, as `rows_of` gives it; and the numbers of the rows
    of each split.
  """
  items, _ = make_users(SIZES['tiny'])
  chosen = make_next_items(SIZES['tiny'], liked=False)
  number = {item: at for at, item in enumerate(sorted({*chosen.values}))}
  rows = []
  for user in range(len(items)):
    targets = {number[item] for item in chosen[user]}
    rows += [
      (f'user_{user}', items[user].tolist(), own, targets - {own})
      for own in (number[item] for item in chosen[user])
    ]
  # Stored in the order of seed 1.
  rows = [rows[at] for at in np.random.default_rng(1).permutation(len(rows))]
  order = np.arange(len(rows))
  if split_seed:
    order = np.random.default_rng(split_seed).permutation(len(rows))
  parts = np.split(order, [len(rows) * 6 // 10, len(rows) * 8 // 10])
  return rows, dict(zip(('train', 'validation', 'test'), parts, strict=True))
