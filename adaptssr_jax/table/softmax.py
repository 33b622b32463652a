"""Softmax over all items, for any layout of the table: losses and draws.

E is the item table without the row of the mask, and b has a bias for each of
its rows. If `sampled` ids are given, the sum over all items is estimated from
them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from adaptssr_jax.ops.item_draws import draw_ids
from adaptssr_jax.ops.item_softmax import softmax_losses_and_best
from adaptssr_jax.ops.sampled_softmax import sampled_softmax_losses
from adaptssr_jax.table.lookup import BatchRows, Table, look_up

# A softmax of more scores than this (512 MiB) is computed in chunks.
_MOST_SCORES = 2**27
# Number of ids in a chunk. Draws depend on it, so it must not depend on the
# number of states of a device.
_CHUNK = 8192
# Scores of a group of rows; 4 MiB of float32 stay in the cache until they are
# reread. With fewer rows in a group, the table would be read too often; a large
# catalogue is then scored in chunks of ids.
_SCORES_OF_GROUP = 2**20
_LEAST_ROWS = 128
_CHUNK_OF_GROUP = 2048


def chunk_size(positions: int, ids: int) -> int | None:
  """Number of ids that a softmax scores at a time; None: all of them."""
  return _CHUNK if positions * ids > _MOST_SCORES else None


def parts_at_once(ids: int) -> tuple[int, int | None]:
  """Numbers of rows in a group, and of ids in its chunks; None: all ids.

  Example:
    >>> parts_at_once(3707), parts_at_once(645_973)
    ((282, None), (128, 2048))
  """
  rows = _SCORES_OF_GROUP // ids
  return (rows, None) if rows >= _LEAST_ROWS else (_LEAST_ROWS, _CHUNK_OF_GROUP)


def sample_items(
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  num_sampled: int,
  num_ids: int,
) -> dict[str, Array]:
  """Adds `sampled`, ids from which the softmax of a batch is estimated.

  Args:
    batch: the batch of a device.
    key: the key of the step, the same on every device, so that all rows share
      the sample.
    num_sampled: number of ids, which are drawn uniformly with replacement.
    num_ids: number of ids to draw from: padding and all items.

  Returns:
    The batch and `sampled`, int32 [num_sampled].
  """
  # Differs from the keys of users, which are folded in from 0 to 2^31 - 1.
  key = jax.random.fold_in(key, np.uint32(2**32 - 1))
  sampled = jax.random.randint(key, (num_sampled,), 0, num_ids)
  return batch | {'sampled': sampled}


def without_padding(bias: Float[Array, ' ids']) -> Float[Array, ' ids']:
  """The biases of a softmax in which padding, the id 0, is not a class."""
  return bias.at[0].set(jnp.finfo(bias.dtype).min)


def label_losses(
  table: Table,
  bias: Float[Array, ' ids'],
  hidden: Float[Array, 'n dim'],
  labels: Int[Array, 'n k'],
  *,
  where: Bool[Array, 'n k'],
  sampled: Int[Array, ' m'] | None = None,
  axis_name: str | None = None,
  skip_masked: bool = False,
) -> tuple[Float[Array, ' n'], Int[Array, ' n'] | None]:
  """Cross entropy of the labels of each row, and the item with the best score.

  - mean over x in labels of log softmax(E h + b)[x]

  Args:
    table: the item table, in any layout.
    bias: b, [ids].
    hidden: h, vectors of positions or users, [n, dim].
    labels: the items, [n, k]. An item that occurs twice has twice the weight.
    where: Bool [n, k]. False masks a label.
    sampled: ids from which the sum over all items is estimated, [m].
    axis_name: the axis over which the table is sharded, if it is.
    skip_masked: do not score rows without labels, which saves time if many rows
      have none. The best items of these rows are then arbitrary.

  Returns:
    The losses, [n], 0 for a row without labels, and the best items, [n]; None
    if the softmax is estimated.

  Raises:
    ValueError: If the table has only the rows of a batch and no ids are
      sampled.
  """
  if sampled is not None:
    rows_of = functools.partial(look_up, table)
    losses = sampled_softmax_losses(
      sampled, hidden, rows_of, bias, labels, where=where
    )
    return losses, None
  if isinstance(table, BatchRows) and table.shard is not None:
    size = chunk_size(len(labels) * lax.axis_size(axis_name), len(table.shard))
    return softmax_losses_and_best(
      hidden,
      table.shard,
      bias,
      labels,
      where=where,
      chunk_size=size,
      axis_name=axis_name,
    )
  if isinstance(table, BatchRows):
    raise ValueError(
      'a softmax over all items needs the whole table, but the step has only '
      'the rows of its batch: estimate it from sampled items'
    )
  chunk, group = chunk_size(len(labels), len(bias)), None
  rows_at_once, ids_at_once = parts_at_once(len(bias))
  if skip_masked and len(labels) > rows_at_once:
    chunk, group = ids_at_once, rows_at_once
  return softmax_losses_and_best(
    hidden,
    table[: len(bias)],
    bias,
    labels,
    where=where,
    chunk_size=chunk,
    group_size=group,
  )


def draw_items(
  table: Table,
  bias: Float[Array, ' ids'],
  hidden: Float[Array, 'n dim'],
  keys: Key[Array, ' n'],
  *,
  sampled: Int[Array, ' m'] | None = None,
) -> Int[Array, ' n']:
  """Draws an item for each state from softmax(E h + b), without padding.

  Args:
    table: the item table, in any layout.
    bias: b, [ids].
    hidden: the states, h, [n, dim].
    keys: a key for each state, [n].
    sampled: ids that were drawn uniformly, [m]. If given, the softmax is over
      these ids only, so that the rows of all drawn items are in the batch.

  Returns:
    The items, [n]; 0 only if all sampled ids are padding.

  Raises:
    ValueError: If this device does not have all rows of the table and no ids
      are sampled.
  """
  bias = without_padding(bias)
  if sampled is not None:
    rows = look_up(table, sampled)
    drawn = draw_ids(keys, hidden, rows, bias[sampled], chunk_size=_CHUNK)
    return sampled[drawn]
  if isinstance(table, BatchRows):
    raise ValueError(
      'this device does not have the rows of all items, and may draw one that '
      'is missing: draw it from sampled items, or replicate the table'
    )
  return draw_ids(keys, hidden, table[: len(bias)], bias, chunk_size=_CHUNK)
