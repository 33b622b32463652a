"""Exchange of rows, and of their gradients, of a table sharded over devices.

Each device holds `num_rows` consecutive rows. By an all-to-all it requests the
rows that it needs from the devices that hold them, and returns the gradients of
these rows. Shapes are fixed: a device can request at most `capacity` rows from
each other device, twice the even share, so that what it sends does not grow
with the number of devices. If a request exceeds the capacity, all devices use
an all-gather of all requested ids instead.
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
# Capacity of a request, as a multiple of the even share of the ids.
_CAPACITY_FACTOR = 2
# Name scope of the fallback, which planning leaves out of its counts.
OVERFLOW = 'over_capacity'


class Requests(NamedTuple):
  """The rows that this device requests from each device.

  Args:
    ids: `[devices, capacity]`, the requested ids by the device that holds them,
      padded with the number of rows on all devices.
    positions: `[devices, capacity]`, the index of each in the array of all ids,
      padded with the length of that array.
    fits_capacity: whether no request of any device exceeds the capacity.
    always_fits: whether the capacity is so large that this holds for any ids.
  """

  ids: Int[Array, 'devices capacity']
  positions: Int[Array, 'devices capacity']
  fits_capacity: Bool[Array, '']
  always_fits: bool


def fetch_rows(
  read: Callable[[Ids], Rows], ids: Ids, *, num_rows: int, axis_name: str
) -> Rows:
  """Fetches rows of the table from the devices that hold them.

  Args:
    read: returns the rows of this device by their numbers, 0..num_rows-1, and
      zeros for the number `num_rows`.
    ids: `[ids]`, distinct rows of the whole table in ascending order, followed
      by ids beyond the table; the same number on every device.
    num_rows: number of rows on each device.
    axis_name: the device axis.

  Returns:
    `[ids, dim]`, zeros for ids beyond the table.
  """
  requests = _requests(ids, num_rows, axis_name)
  local = functools.partial(_local_rows, num_rows=num_rows, axis_name=axis_name)

  def ask_owners() -> Rows:
    asked = lax.all_to_all(requests.ids, axis_name, 0, 0)
    answers = read(local(asked.reshape(-1))).reshape(*asked.shape, -1)
    answers = lax.all_to_all(answers, axis_name, 0, 0)
    rows = jnp.zeros((len(ids), answers.shape[-1]), answers.dtype)
    return rows.at[requests.positions].set(answers, mode='drop')

  def ask_all() -> Rows:
    asked = lax.all_gather(ids, axis_name)
    answers = read(local(asked.reshape(-1))).reshape(*asked.shape, -1)
    return lax.psum_scatter(answers, axis_name)

  return _if_fits(requests, ask_owners, ask_all)


def gather_gradients(
  gradients: Rows, ids: Ids, *, num_rows: int, axis_name: str
) -> tuple[Float[Array, 'rows dim'], Int[Array, ' rows']]:
  """Sums the gradients of this device's rows over all devices.

  Args:
    gradients: `[ids, dim]`, gradients of the rows that this device fetched.
    ids: `[ids]`, the ids of these rows, as passed to `fetch_rows`.
    num_rows: number of rows on each device.
    axis_name: the device axis.

  Returns:
    The sums `[rows, dim]`, and the numbers of their rows on this device
    `[rows]`, which are distinct; `num_rows` marks an unused entry.
  """
  requests = _requests(ids, num_rows, axis_name)
  add = functools.partial(
    _add_up,
    num_rows=num_rows,
    size=min(len(ids) * lax.axis_size(axis_name), num_rows + 1),
    axis_name=axis_name,
  )

  def send_to_owners() -> tuple[Array, Array]:
    sent = gradients.at[requests.positions].get(mode='fill', fill_value=0)
    return add(*lax.all_to_all((sent, requests.ids), axis_name, 0, 0))

  def send_to_all() -> tuple[Array, Array]:
    return add(*lax.all_gather((gradients, ids), axis_name))

  return _if_fits(requests, send_to_owners, send_to_all)


def _requests(ids: Ids, num_rows: int, axis_name: str) -> Requests:
  """Groups ascending ids by the device that holds them."""
  devices = lax.axis_size(axis_name)
  most = min(len(ids), num_rows)
  capacity = min(most, math.ceil(_CAPACITY_FACTOR * len(ids) / devices))
  starts = jnp.searchsorted(ids, num_rows * jnp.arange(devices + 1))
  positions = starts[:-1, None] + jnp.arange(capacity)[None]
  positions = jnp.where(positions < starts[1:, None], positions, len(ids))
  asked = ids.at[positions].get(mode='fill', fill_value=num_rows * devices)
  fits = lax.pmin((jnp.diff(starts) <= capacity).all().astype(int), axis_name)
  return Requests(asked, positions, fits == 1, always_fits=capacity == most)


def _if_fits(
  requests: Requests,
  exchange: Callable[[], jax.Array | tuple[jax.Array, ...]],
  otherwise: Callable[[], jax.Array | tuple[jax.Array, ...]],
) -> jax.Array | tuple[jax.Array, ...]:
  """Runs `exchange` if the requests of all devices fit, else `otherwise`."""
  if requests.always_fits:
    return exchange()
  otherwise = jax.named_scope(OVERFLOW)(otherwise)
  return lax.cond(requests.fits_capacity, exchange, otherwise)


def _add_up(
  gradients: Float[Array, 'devices ids dim'],
  ids: Int[Array, 'devices ids'],
  *,
  num_rows: int,
  size: int,
  axis_name: str,
) -> tuple[Float[Array, 'size dim'], Int[Array, ' size']]:
  rows, positions = jnp.unique(
    _local_rows(ids.reshape(-1), num_rows, axis_name),
    return_inverse=True,
    size=size,
    fill_value=num_rows,
  )
  sums = jnp.zeros((size, gradients.shape[-1]), gradients.dtype)
  gradients = gradients.reshape(len(positions), -1)
  return sums.at[positions].add(gradients), rows


def _local_rows(ids: Ids, num_rows: int, axis_name: str) -> Ids:
  """Row numbers on this device; `num_rows` for rows of other devices."""
  rows = ids - lax.axis_index(axis_name) * num_rows
  is_here = (rows >= 0) & (rows < num_rows)
  return jnp.where(is_here, rows, num_rows)
