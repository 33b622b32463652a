"""Rows of a table that is split over the devices, to and from who needs them.

Each device holds `num_rows` consecutive rows. A device that needs rows asks all
devices; each answers for its own rows, and the answers are added up where the
question came from. Gradients go the opposite way.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Ids = Int[Array, ' ids']
Rows = Float[Array, 'ids dim']


def fetch_rows(
  read: Callable[[Ids], Rows], ids: Ids, *, num_rows: int, axis_name: str
) -> Rows:
  """Rows of the table, from the devices that hold them.

  Args:
    read: gives the rows of this device at some places 0..num_rows-1, and zeros
      at the place `num_rows`.
    ids: `[ids]`, rows of the whole table; as many on every device.
    num_rows: how many rows each device holds.
    axis_name: the axis of the devices.

  Returns:
    `[ids, dim]`, zeros for ids beyond the table.
  """
  asked = lax.all_gather(ids, axis_name)
  answers = read(_places(asked.reshape(-1), num_rows, axis_name))
  return lax.psum_scatter(answers.reshape(*asked.shape, -1), axis_name)


def gather_gradients(
  gradients: Rows, ids: Ids, *, num_rows: int, axis_name: str
) -> tuple[Float[Array, 'places dim'], Int[Array, ' places']]:
  """The gradients of the rows that this device holds, from all devices.

  Args:
    gradients: `[ids, dim]`, of the rows that this device has fetched.
    ids: `[ids]`, which rows these are.
    num_rows: how many rows each device holds.
    axis_name: the axis of the devices.

  Returns:
    The sum over the devices of the gradient of each row, and the places of
    these rows, each once; `num_rows` where nothing is.
  """
  everyone = lax.all_gather(gradients, axis_name, tiled=True)
  asked = lax.all_gather(ids, axis_name, tiled=True)
  places, slots = jnp.unique(
    _places(asked, num_rows, axis_name),
    return_inverse=True,
    size=min(len(asked), num_rows + 1),
    fill_value=num_rows,
  )
  sums = jnp.zeros((len(places), gradients.shape[1]), gradients.dtype)
  return sums.at[slots].add(everyone), places


def _places(ids: Ids, num_rows: int, axis_name: str) -> Ids:
  """Where this device has these rows; `num_rows` for those of others."""
  places = ids - lax.axis_index(axis_name) * num_rows
  is_here = (places >= 0) & (places < num_rows)
  return jnp.where(is_here, places, num_rows)
