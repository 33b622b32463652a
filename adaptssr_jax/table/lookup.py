"""Look-up of item embeddings, for every layout of the item table.

The parameters of a model are `table`, `encoder`, and `head` for what an
objective or a task adds. Objectives read rows by `look_up`, and compute
softmaxes over all items by `table.softmax`. Inside a step `params['table']` is
an array (every device has all rows) or `BatchRows` (the step has the rows of
its batch). Only this package and the training steps distinguish them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
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
    shard: `[shard_rows, dim]`, the rows that this device holds of a table that
      is sharded over devices; None if the step does not have them.
  """

  ids: Int[Array, ' size']
  rows: Float[Array, 'size dim']
  shard: Float[Array, 'shard_rows dim'] | None = None


# Arrays of a batch that hold item ids of its users: their behaviours and those
# of their partners, items that augmentations may insert, and negatives.
_ITEM_ARRAYS = ('items', 'partner_items', 'similar_items', 'negatives')
# What `params['table']` may be inside a step.
Table = Float[Array, 'rows dim'] | BatchRows


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
  if not isinstance(table, BatchRows):
    return take_rows(table, ids)
  rows = jnp.searchsorted(table.ids, ids)
  found = table.ids.at[rows].get(mode='clip') == ids
  # `take` returns nan out of range; indexing would return another item's row.
  rows = jnp.where(found, rows, len(table.ids))
  return jnp.take(table.rows, rows, axis=0)


def distinct_ids(
  items: Int[Array, '...'], *, mask_id: int
) -> Int[Array, ' size']:
  """The distinct ids of items, with those of padding and of the mask.

  Args:
    items: ids in 0..mask_id, 0 for padding. Ids beyond mask_id are left out, so
      that `look_up` does not find them.
    mask_id: the last row of the table, which augmentations may insert.

  Returns:
    `[size]`, the ids in ascending order, padded with the largest integer, which
    is beyond any table; `size` is the most that there can be.

  Example:
    >>> items = jnp.array([[30, 10, 30], [50, 0, 0]])
    >>> distinct_ids(items, mask_id=99).tolist()[:6]
    [0, 10, 30, 50, 99, 2147483647]
  """
  size = min(items.size, mask_id - 1) + 2
  beyond = jnp.iinfo(items.dtype).max
  ends = jnp.array([0, mask_id], items.dtype)
  # Sorting twice takes a third of the time of jnp.unique.
  ids = jnp.sort(jnp.append(items, ends))
  is_first = (jnp.diff(ids, prepend=-1) > 0) & (ids <= mask_id)
  return jnp.sort(jnp.where(is_first, ids, beyond))[:size]


def needed_ids(
  batch: dict[str, Array], *, mask_id: int, all_of: str | None = None
) -> Int[Array, ' size']:
  """The `distinct_ids` of the rows that a batch needs.

  Args:
    batch: this device's part of a batch.
    mask_id: the last row of the table.
    all_of: a device axis; the ids are then those of all its devices.
  """
  items = jnp.concatenate(
    [batch[name].reshape(-1) for name in _ITEM_ARRAYS if name in batch]
  )
  if all_of is not None:
    items = lax.all_gather(items, all_of)
  # The sample from which a softmax is estimated is the same on every device.
  if 'sampled' in batch:
    items = jnp.append(items, batch['sampled'])
  return distinct_ids(items, mask_id=mask_id)


def with_batch_rows(
  function: Callable[..., Any], *, mask_id: int, axis_name: str
) -> Callable[..., Any]:
  """Makes a function accept parameters whose table is sharded.

  Args:
    function: (params, batch, *args) -> result; reads `params['table']` by
      `look_up` and `table.softmax` only.
    mask_id: the last row of the table.
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
      ids = needed_ids(batch, mask_id=mask_id)
      rows = fetch_rows(
        lambda rows: shard.at[rows].get(mode='fill', fill_value=0),
        ids,
        num_rows=len(shard),
        axis_name=axis_name,
      )
      table = BatchRows(ids, rows, shard)
    return function(params | {'table': table}, batch, *args)

  return on_any_table


def model_params(encoder_params: dict[str, Any]) -> dict[str, Any]:
  """Converts the parameters of a `UserEncoder` to those of a model."""
  encoder = dict(encoder_params)
  return {'table': encoder.pop('item_embedding'), 'encoder': encoder}


def encoder_params(params: dict[str, Any]) -> dict[str, Any]:
  """The inverse of `model_params`: what `UserEncoder.apply` takes."""
  return {'item_embedding': params['table'], **params['encoder']}
