"""Batches as a pure function of the seed and the step.

A user of a batch may have a partner: another user with the same last item.
"""

import functools

import numpy as np

from adaptssr_jax.data.prepared.arrays import UserArrays
from adaptssr_jax.data.ragged import Ragged

# Users whose last items are read at a time.
_BLOCK = 65_536


def by_last_item(items: Ragged) -> Ragged:
  """Groups users by their last item.

  Args:
    items: the behaviours of each user, item numbers from 1.

  Returns:
    For each item number, the users with this last item, ascending, int32. Users
    with fewer than two behaviours are left out, since they have nothing before
    the last one.

  Example:
    >>> users = by_last_item(Ragged.from_rows([[1, 3], [3], [2, 3], [3, 1]]))
    >>> users[3].tolist(), users[1].tolist()
    ([0, 2], [3])
  """
  last = np.zeros(len(items), np.int32)
  for start in range(0, len(items), _BLOCK):
    rows = np.arange(start, min(start + _BLOCK, len(items)))
    last[rows] = _last_of(items, rows)
  counts = np.bincount(last)
  counts[:1] = 0
  # A stable sort keeps the users of an item in order; 0, no item, comes first.
  users = np.argsort(last, kind='stable')[len(last) - counts.sum() :]
  return Ragged.from_lengths(users.astype(np.int32), counts)


def draw_partners(
  items: Ragged,
  by_last: Ragged,
  rows: np.ndarray,
  draws: np.ndarray,
) -> np.ndarray:
  """Draws another user with the same last item, uniformly.

  Args:
    items: the behaviours of each user.
    by_last: the result of `by_last_item` for `items`.
    rows: users, int [n].
    draws: a random number in [0, 1) for each of them, float64 [n].

  Returns:
    The drawn users, int [n]; the user itself if there is no other.

  Example:
    >>> items = Ragged.from_rows([[1, 3], [3], [2, 3], [3, 1]])
    >>> rows = np.arange(4)
    >>> draw_partners(items, by_last_item(items), rows, np.zeros(4)).tolist()
    [2, 1, 0, 3]

  Reference:
    Qiu et al., "Contrastive Learning for Representation Degeneration Problem in
    Sequential Recommendation" (DuoRec), WSDM 2022. There every prefix of a
    sequence is a sequence of its own, with the next item as its target.
  """
  last = _last_of(items, rows)
  others = by_last.lengths_of(last) - 1
  index = by_last.offsets[last] + (draws * others).astype(np.int64)
  has_other = others > 0
  index = np.where(has_other, index, 0)
  if not len(by_last.values):
    return rows
  # Skips the user itself: users are in order, so later ones move by one.
  partner = by_last.values[index]
  index += has_other & (partner >= rows)
  return np.where(has_other, by_last.values[index], rows)


def _last_of(items: Ragged, rows: np.ndarray) -> np.ndarray:
  """The last item of each user; 0 for fewer than two behaviours."""
  last = items.padded(rows, 1)[:, 0]
  return np.where(items.lengths_of(rows) > 1, last, 0)


def users_per_device(batch_size: int, num_devices: int) -> int:
  """The number of users of a batch per device.

  Raises:
    ValueError: the batch cannot be split evenly; the message names the nearest
      sizes.
  """
  if batch_size % num_devices:
    below = batch_size // num_devices * num_devices
    nearest = [size for size in (below, below + num_devices) if size]
    raise ValueError(
      f'a batch of {batch_size} users cannot be split over {num_devices} '
      f'devices: take {" or ".join(map(str, nearest))}'
    )
  return batch_size // num_devices


def steps_per_epoch(num_users: int, batch_size: int) -> int:
  """The number of batches that contain every user once."""
  return -(-num_users // batch_size)


@functools.lru_cache(maxsize=2)
def epoch_order(num_users: int, seed: int, epoch: int) -> np.ndarray:
  """The order of all users in one epoch, int64 [num_users]."""
  order = np.random.default_rng([seed, epoch]).permutation(num_users)
  order.flags.writeable = False
  return order


def batch_at(
  arrays: UserArrays,
  step: int,
  *,
  batch_size: int,
  length: int,
  num_devices: int,
  seed: int | None,
  window: str = 'last',
  part: tuple[int, int] = (0, 1),
) -> dict[str, np.ndarray]:
  """The batch of one step, a function of the seed and the step alone.

  Args:
    arrays: the split that batches are drawn from.
    step: index of the step, from 0, over all epochs.
    batch_size: number of users on all devices together.
    length: number of behaviours kept per user.
    num_devices: number of equal parts that the batch is split into.
    seed: seed of the order of users, which differs in each epoch; None keeps
      the stored order.
    window: for users with more than `length` behaviours: 'last' takes the last
      ones, 'random' a run that is drawn at every step.
    part: (i, n) returns the i-th of n equal parts of the devices, for process i
      of n.

  Returns:
    Arrays [devices, users, ...], for the devices of the part:
      items: int32 [..., length].
      where: bool; False marks the padding users of an epoch's last batch.
      example_id: int32, the index of the example in the split.
      label: int32, if the split has labels.
      partner_items: int32 [..., length], if the split has `by_last_item`: the
        behaviours of another user with the same last item, drawn at every step,
        or those of the user if there is none.
      similar_items: int32 [..., length, k], if the split has them: the similar
        items of each behaviour.
      targets, positives: int32 [..., width], for a ranking task, padded with -1
        at the end. The width is the same for all batches of a split: the length
        of the longest list, rounded up to a power of two.

  Raises:
    ValueError: the batch cannot be split evenly over the devices.

  Example:
    >>> from adaptssr_jax.data.ragged import Ragged
    >>> users = UserArrays(None, Ragged.from_rows([[5, 6], [7], [8]]))
    >>> batch = batch_at(
    ...   users, 1, batch_size=2, length=3, num_devices=1, seed=None
    ... )
    >>> batch['items'][0].tolist(), batch['where'][0].tolist()
    ([[8, 0, 0], [0, 0, 0]], [True, False])
  """
  users = users_per_device(batch_size, num_devices)
  num_users = len(arrays.items)
  epoch, index = divmod(step, steps_per_epoch(num_users, batch_size))
  begin = index * batch_size
  if seed is None:
    rows = np.arange(begin, min(begin + batch_size, num_users))
  else:
    order = epoch_order(num_users, seed, epoch)
    rows = order[begin : begin + batch_size]

  skip = 0
  if window == 'random':
    rng = np.random.default_rng([seed or 0, step, 1])
    lengths = arrays.items.lengths_of(rows)
    skip = rng.integers(np.maximum(lengths - length, 0), endpoint=True)
  index, count = part
  num_devices //= count
  mine = slice(index * num_devices * users, (index + 1) * num_devices * users)
  drawn = len(rows)
  rows, skip = rows[mine], np.broadcast_to(skip, drawn)[mine]
  columns = {
    'items': arrays.items.padded(rows, length, skip=skip),
    'where': np.ones(len(rows), bool),
    'example_id': rows.astype(np.int32),
  }
  if arrays.label is not None:
    columns['label'] = arrays.label[rows]
  if arrays.by_last_item is not None:
    rng = np.random.default_rng([seed or 0, step, 2])
    partners = draw_partners(
      arrays.items, arrays.by_last_item, rows, rng.random(drawn)[mine]
    )
    columns['partner_items'] = arrays.items.padded(partners, length)
  if arrays.similar_items is not None:
    columns['similar_items'] = arrays.similar_items[columns['items']]
  fills = {'targets': -1, 'positives': -1}
  for name, fill in fills.items():
    lists = getattr(arrays, name)
    if lists is not None:
      width = 1 << (lists.longest - 1).bit_length()
      columns[name] = lists.padded(rows, width, fill=fill)
  return {
    name: _split(column, num_devices, users, fill=fills.get(name, 0))
    for name, column in columns.items()
  }


def _split(
  column: np.ndarray, num_devices: int, users: int, *, fill: int
) -> np.ndarray:
  """Pads a column to a full batch and splits it over devices."""
  shape = (num_devices * users, *column.shape[1:])
  full = np.full(shape, fill, column.dtype)
  full[: len(column)] = column
  return full.reshape(num_devices, users, *column.shape[1:])
