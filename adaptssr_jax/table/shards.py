"""An item table whose rows are split over the devices.

Each device holds rows_per_device consecutive rows. Who needs rows asks all
devices; each answers for its own, and the answers are added up where they were
asked for. Gradients go the opposite way.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptssr_jax.table.compact import compact_ids

Ids = Int[Array, ' ids']
Rows = Float[Array, 'ids dim']


def take_table(tree: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
  """The item table of parameters or gradients, and all that is left."""
  encoder = dict(tree['encoder'])
  return encoder.pop('item_embedding'), {**tree, 'encoder': encoder}


def with_table(tree: dict[str, Any], table: Any) -> dict[str, Any]:
  """Puts back what `take_table` took, or another table."""
  return {**tree, 'encoder': {**tree['encoder'], 'item_embedding': table}}


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


def fetch_from(
  shard: Float[Array, 'rows dim'], axis_name: str
) -> Callable[[Ids], Rows]:
  """A function of ids that gives their rows, from the parts of all devices."""
  return functools.partial(
    fetch_rows,
    functools.partial(_read, shard),
    num_rows=len(shard),
    axis_name=axis_name,
  )


def _read(shard: Float[Array, 'rows dim'], places: Ids) -> Rows:
  return shard.at[places].get(mode='fill', fill_value=0)


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


def on_rows(
  function: Callable[..., Any], *, mask_id: int, size: int, axis_name: str
) -> Callable[..., Any]:
  """Lets a function of a whole table work on one that is split.

  Args:
    function: (params, batch, *args) -> result, of an encoder of `size - 2`
      items.
    mask_id: the last row of the whole table.
    size: rows of the small table, see `compact.compact_ids`.
    axis_name: the axis of the devices.

  Returns:
    The function of parameters whose table is of `Shards`. It calls the given
    one with the rows of the items of the batch as the table, and the items
    numbered accordingly; besides with what a softmax over all items needs, the
    part of this device as `params['table']`, and as `batch['ids']` the ids of
    the rows.
  """
  return functools.partial(_on_rows, function, mask_id, size, axis_name)


def _on_rows(
  function: Callable[..., Any],
  mask_id: int,
  size: int,
  axis_name: str,
  params: dict[str, Any],
  batch: dict[str, Array],
  *args: Any,
) -> Any:
  table, others = take_table(params)
  ids, items = compact_ids(batch['items'], mask_id=mask_id, size=size)
  rows = fetch_from(table.rows, axis_name)(ids)
  params = with_table(others, rows) | {'table': table.rows}
  return function(params, batch | {'items': items, 'ids': ids}, *args)


def _places(ids: Ids, num_rows: int, axis_name: str) -> Ids:
  """Where this device has these rows; `num_rows` for those of others."""
  places = ids - lax.axis_index(axis_name) * num_rows
  is_here = (places >= 0) & (places < num_rows)
  return jnp.where(is_here, places, num_rows)
