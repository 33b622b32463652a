"""Rows of a table that is split over the devices, to and from who needs them.

Each device holds `num_rows` consecutive rows. A device asks each of the others
for the rows that it needs of them, and sends back the gradients of these: an
all-to-all, of which a device sends no more the more devices there are. For
that each device has places for twice its share of the rows that are asked for.
Where more are asked of one device, all devices ask all, and each answers for
its own rows.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Ids = Int[Array, ' ids']
Rows = Float[Array, 'ids dim']
# Places for the rows that are asked of a device, over its even share of them.
_SLACK = 2
# Names what is computed only where one device is asked for too much.
CROWDED = 'crowded'


class Requests(NamedTuple):
  """Which rows a device needs of which.

  Args:
    ids: `[devices, places]`, of each device that is asked; the number of rows
      of the whole table where nothing is.
    slots: `[devices, places]`, where in the list of all ids each is; its length
      where nothing is.
    fit: whether the places are enough, on all devices.
    always_fit: whether they cannot be too few.
  """

  ids: Int[Array, 'devices places']
  slots: Int[Array, 'devices places']
  fit: Bool[Array, '']
  always_fit: bool


def fetch_rows(
  read: Callable[[Ids], Rows], ids: Ids, *, num_rows: int, axis_name: str
) -> Rows:
  """Rows of the table, from the devices that hold them.

  Args:
    read: gives the rows of this device at some places 0..num_rows-1, and zeros
      at the place `num_rows`.
    ids: `[ids]`, rows of the whole table, each once in ascending order, and
      then any that are beyond it; as many on every device.
    num_rows: how many rows each device holds.

  Returns:
    `[ids, dim]`, zeros for ids beyond the table.
  """
  requests = _requests(ids, num_rows, axis_name)
  place = functools.partial(_places, num_rows=num_rows, axis_name=axis_name)

  def ask_owners() -> Rows:
    asked = lax.all_to_all(requests.ids, axis_name, 0, 0)
    answers = read(place(asked.reshape(-1))).reshape(*asked.shape, -1)
    answers = lax.all_to_all(answers, axis_name, 0, 0)
    rows = jnp.zeros((len(ids), answers.shape[-1]), answers.dtype)
    return rows.at[requests.slots].set(answers, mode='drop')

  def ask_all() -> Rows:
    asked = lax.all_gather(ids, axis_name)
    answers = read(place(asked.reshape(-1))).reshape(*asked.shape, -1)
    return lax.psum_scatter(answers, axis_name)

  return _if_fit(requests, ask_owners, ask_all)


def gather_gradients(
  gradients: Rows, ids: Ids, *, num_rows: int, axis_name: str
) -> tuple[Float[Array, 'places dim'], Int[Array, ' places']]:
  """The gradients of the rows that this device holds, from all devices.

  Args:
    gradients: `[ids, dim]`, of the rows that this device has fetched.
    ids: `[ids]`, which rows these are, as `fetch_rows` was given them.
    num_rows: how many rows each device holds.

  Returns:
    The sum over the devices of the gradient of each row, and the places of
    these rows, each once; `num_rows` where nothing is.
  """
  requests = _requests(ids, num_rows, axis_name)
  most = len(ids) * lax.axis_size(axis_name)
  if requests.always_fit:
    most = requests.ids.size
  add = functools.partial(
    _add_up,
    num_rows=num_rows,
    size=min(most, num_rows + 1),
    axis_name=axis_name,
  )

  def send_to_owners() -> tuple[Array, Array]:
    sent = gradients.at[requests.slots].get(mode='fill', fill_value=0)
    exchange = functools.partial(
      lax.all_to_all, axis_name=axis_name, split_axis=0, concat_axis=0
    )
    return add(exchange(sent), exchange(requests.ids))

  def send_to_all() -> tuple[Array, Array]:
    return add(*lax.all_gather((gradients, ids), axis_name))

  return _if_fit(requests, send_to_owners, send_to_all)


def _requests(ids: Ids, num_rows: int, axis_name: str) -> Requests:
  """Sorts ascending ids by the device that holds them."""
  devices = lax.axis_size(axis_name)
  most = min(len(ids), num_rows)
  capacity = min(most, math.ceil(_SLACK * len(ids) / devices))
  starts = jnp.searchsorted(ids, num_rows * jnp.arange(devices + 1))
  slots = starts[:-1, None] + jnp.arange(capacity)[None]
  slots = jnp.where(slots < starts[1:, None], slots, len(ids))
  asked = ids.at[slots].get(mode='fill', fill_value=num_rows * devices)
  fit = lax.pmin((jnp.diff(starts) <= capacity).all().astype(int), axis_name)
  return Requests(asked, slots, fit == 1, always_fit=capacity == most)


def _if_fit(
  requests: Requests,
  exchange: Callable[[], jax.Array | tuple[jax.Array, ...]],
  otherwise: Callable[[], jax.Array | tuple[jax.Array, ...]],
) -> jax.Array | tuple[jax.Array, ...]:
  """Takes the same of two ways on every device."""
  if requests.always_fit:
    return exchange()
  return lax.cond(requests.fit, exchange, jax.named_scope(CROWDED)(otherwise))


def _add_up(
  gradients: Float[Array, 'devices ids dim'],
  ids: Int[Array, 'devices ids'],
  *,
  num_rows: int,
  size: int,
  axis_name: str,
) -> tuple[Float[Array, 'size dim'], Int[Array, ' size']]:
  places, slots = jnp.unique(
    _places(ids.reshape(-1), num_rows, axis_name),
    return_inverse=True,
    size=size,
    fill_value=num_rows,
  )
  sums = jnp.zeros((size, gradients.shape[-1]), gradients.dtype)
  return sums.at[slots].add(gradients.reshape(len(slots), -1)), places


def _places(ids: Ids, num_rows: int, axis_name: str) -> Ids:
  """Where this device has these rows; `num_rows` for those of others."""
  places = ids - lax.axis_index(axis_name) * num_rows
  is_here = (places >= 0) & (places < num_rows)
  return jnp.where(is_here, places, num_rows)
