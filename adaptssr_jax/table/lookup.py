"""Look-up of item embeddings, for every layout of the item table.

The parameters of a model are `table`, `encoder`, and `head` for what an
objective or a task adds. Objectives read rows by `look_up`, and compute
softmaxes over all items by `table.softmax`. Inside a step `params['table']` is
an array (every device has all rows), a `ShardedTable` (each has a shard)
or `BatchRows` (the step has only the rows of its batch). Only this package and
the training steps distinguish them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from adaptssr_jax.ops.rows import take_rows
from adaptssr_jax.table.exchange import fetch_rows
from adaptssr_jax.table.shards import is_shards


class BatchRows(NamedTuple):
  """The rows of a table that one batch needs.

  Args:
    ids: `[size]`, the ids of the rows in ascending order, followed by ids
      beyond the table for empty rows.
    rows: `[size, dim]`, the rows.
  """

  ids: Int[Array, ' size']
  rows: Float[Array, 'size dim']


class ShardedTable(NamedTuple):
  """A table that is sharded over devices, as one device sees it in a step.

  Args:
    shard: `[rows, dim]`, the rows that this device holds.
    batch: the rows that this device's part of the batch needs, fetched from all
      devices.
  """

  shard: Float[Array, 'rows dim']
  batch: BatchRows


# Arrays of a batch that hold item ids whose rows are looked up: behaviours of
# the users and of their partners, items that augmentations may insert,
# negatives, and the sample from which a softmax is estimated.
_ITEM_ARRAYS = (
  'items',
  'partner_items',
  'similar_items',
  'negatives',
  'sampled',
)
# What `params['table']` may be inside a step.
Table = Float[Array, 'rows dim'] | BatchRows | ShardedTable


@jax.named_scope('look_up')
def look_up(
  table: Table, ids: Int[ArrayLike, '...']
) -> Float[Array, '... dim']:
  """Looks up the rows of items.

  Args:
    table: the item table, in any layout.
    ids: item ids, of any shape.

  Returns:
    `[..., dim]`, nan for an id that the table does not have.

  Example:
    >>> rows = jnp.array([[0.0], [5.0], [7.0], [9.0]])
    >>> table = BatchRows(ids=jnp.array([0, 5, 7, 9]), rows=rows)
    >>> look_up(table, jnp.array([[7, 5], [6, 0]]))[..., 0].tolist()
    [[7.0, 5.0], [nan, 0.0]]
  """
  ids = jnp.asarray(ids)
  if isinstance(table, ShardedTable):
    table = table.batch
  if not isinstance(table, BatchRows):
    return take_rows(table, ids)
  rows = jnp.searchsorted(table.ids, ids)
  found = table.ids.at[rows].get(mode='clip') == ids
  # `take` returns nan out of range; indexing would return another item's row.
  rows = jnp.where(found, rows, len(table.ids))
  return jnp.take(table.rows, rows, axis=0)


def distinct_ids(
  items: Int[Array, '...'], *, mask_id: int, size: int
) -> Int[Array, ' size']:
  """The ids of the rows that a batch needs, padding and mask included.

  Args:
    items: ids in 0..mask_id, 0 for padding.
    mask_id: the last row of the table, which augmentations may insert.
    size: at least the number of distinct items other than padding and mask,
      plus 2. `items.size + 2` is always enough.

  Returns:
    `[size]`, the distinct ids in ascending order, padded with the largest
    integer, which is beyond any table. If `size` is too small, the highest ids
    are missing.

  Raises:
    ValueError: If `size` is below 2.

  Example:
    >>> items = jnp.array([[30, 10, 30], [50, 0, 0]])
    >>> distinct_ids(items, mask_id=99, size=6).tolist()
    [0, 10, 30, 50, 99, 2147483647]
  """
  if size < 2:
    raise ValueError(f'size must be at least 2, not {size}.')
  beyond = jnp.iinfo(items.dtype).max
  ends = jnp.array([0, mask_id], items.dtype)
  # Sorting twice takes a third of the time of jnp.unique.
  ids = jnp.sort(jnp.append(items, ends))
  ids = jnp.sort(jnp.where(jnp.diff(ids, prepend=-1) > 0, ids, beyond))
  return jnp.pad(ids, (0, size), constant_values=beyond)[:size]


def needed_items(batch: dict[str, Array]) -> Int[Array, ' n']:
  """All item ids of a batch whose rows are looked up, in one flat array."""
  names = [name for name in _ITEM_ARRAYS if name in batch]
  return jnp.concatenate([batch[name].reshape(-1) for name in names])


def with_batch_rows(
  function: Callable[..., Any], *, mask_id: int, size: int, axis_name: str
) -> Callable[..., Any]:
  """Makes a function accept parameters whose table is sharded.

  Args:
    function: (params, batch, *args) -> result; reads `params['table']` by
      `look_up` and `table.softmax` only.
    mask_id: the last row of the table.
    size: upper bound of the distinct rows in a device's batch, see
      `distinct_ids`.
    axis_name: the device axis.

  Returns:
    The same function. If `params['table']` is `Shards`, it first fetches the
    distinct rows of the batch from the other devices.
  """

  def on_any_table(
    params: dict[str, Any], batch: dict[str, Array], *args: Any
  ) -> Any:
    table = params['table']
    if is_shards(table):
      shard = table.rows
      ids = distinct_ids(needed_items(batch), mask_id=mask_id, size=size)
      rows = fetch_rows(
        lambda rows: shard.at[rows].get(mode='fill', fill_value=0),
        ids,
        num_rows=len(shard),
        axis_name=axis_name,
      )
      table = ShardedTable(shard, BatchRows(ids, rows))
    return function(params | {'table': table}, batch, *args)

  return on_any_table


def model_params(encoder_params: dict[str, Any]) -> dict[str, Any]:
  """Converts the parameters of a `UserEncoder` to those of a model."""
  encoder = dict(encoder_params)
  return {'table': encoder.pop('item_embedding'), 'encoder': encoder}


def encoder_params(params: dict[str, Any]) -> dict[str, Any]:
  """The inverse of `model_params`: what `UserEncoder.apply` takes."""
  return {'item_embedding': params['table'], **params['encoder']}
