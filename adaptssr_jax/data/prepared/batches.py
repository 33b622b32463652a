"""Batches as a pure function of the seed and the step."""

import functools

import numpy as np

from adaptssr_jax.data.prepared.arrays import UserArrays
from adaptssr_jax.data.prepared.partners import draw_partners


def users_per_device(batch_size: int, num_devices: int) -> int:
  """How many users of a batch each device gets.

  Raises:
    ValueError: the batch cannot be split evenly; names the nearest sizes.
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
  """Batches that show every user once; the last one may be padded."""
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
  """The batch of one step: resuming needs nothing but the step.

  Args:
    arrays: the split it is drawn from.
    step: counted from 0 over all epochs.
    batch_size: users of all devices together.
    length: behaviours kept of a user.
    num_devices: how many equal parts the batch is split into.
    seed: of the order, a new one every epoch; None keeps the stored order.
    window: which behaviours of a longer user: the 'last', or a 'random' run of
      them, drawn anew at every step.
    part: (i, n): of n equal parts of the devices that of number i alone, as one
      of several processes reads it.

  Returns:
    Each [devices, users, ...], for the devices of the part: `items` int32 [...,
    length], `where` bool (False marks the padding users of an epoch's last
    batch), `example_id` int32 (the example in the split), and `label` int32
    where there is one. Of users with `by_last_item` also `partner_items` int32
    [..., length], the behaviours of another user with the same last item, drawn
    anew at every step, or those of the user if there is none. With
    `similar_items` also those of each behaviour, int32 [..., length, k]. Of a
    ranking task also `targets` int32 [..., width]: all positives of the user,
    then -1; and `positives` int32 [..., most]: those of the split, then -1. The
    widths are the same for all batches of a split: its longest list, rounded up
    to a power of two.

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
  columns = {
    name: _split(column, num_devices, users, fill=0)
    for name, column in columns.items()
  }
  for name in ('targets', 'positives'):
    lists = getattr(arrays, name)
    if lists is not None:
      width = 1 << (lists.longest - 1).bit_length()
      padded = lists.padded(rows, width, fill=-1)
      columns[name] = _split(padded, num_devices, users, fill=-1)
  return columns


def _split(
  column: np.ndarray, num_devices: int, users: int, *, fill: int
) -> np.ndarray:
  """Fills a column up to a full batch and splits it over devices."""
  shape = (num_devices * users, *column.shape[1:])
  full = np.full(shape, fill, column.dtype)
  full[: len(column)] = column
  return full.reshape(num_devices, users, *column.shape[1:])
