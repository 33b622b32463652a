"""Softmax losses over a catalogue, on one device or with a sharded table.

The arrays of `n` rows and a catalogue of `ids`, here and in the files that
refer to this one, are

  hidden  h, the vector of each row, [n, dim]
  table   E, the vector of each id, [ids, dim]
  bias    b, the bias of each id, [ids]; -inf or the least number excludes an id
  labels  k ids in 0..ids-1 for each row, [n, k]
  where   bool [n, k], False masks a label
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from adaptssr_jax.ops.microbatches import map_chunks_where
from adaptssr_jax.ops.reductions import as_float, check_size, max_and_first

Losses = Float[Array, ' n']
Ids = Int[Array, ' n']
# Of the scores z = E h + b of each row: log sum exp z, the sum of the scores of
# the labels, the highest score, and its id.
Reduced = tuple[Losses, Losses, Losses, Ids]


def softmax_losses_and_best(
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'rows dim'],
  bias: Float[ArrayLike, ' ids'],
  labels: Int[ArrayLike, 'n k'],
  *,
  where: Bool[ArrayLike, 'n k'],
  chunk_size: int | None = None,
  group_size: int | None = None,
  axis_name: str | None = None,
) -> tuple[Losses, Ids]:
  """Cross entropy of the labels of each row, and the id with the best score.

  - mean over x in labels of log softmax(E h + b)[x]  and  argmax(E h + b)

  With several labels, the loss is the multinomial likelihood of a set.

  If the rows of E are sharded over devices, every device scores the rows of
  `hidden` of all devices against its shard, and returns the reduced scores to
  the devices that the rows come from:

  log sum_i e^z_i = log sum_d e^(log sum_{i of d} e^z_i)

  Args:
    table: `[ids, dim]`; with `axis_name` this device's shard of it, `[rows,
      dim]`, whose rows on the last devices may exceed the ids.
    labels: `[n, k]`. A label that occurs twice has twice the weight.
    chunk_size: number of ids that are scored at a time. None scores all at
      once, in `[n, ids]` floats. Chunks take `[n, chunk_size]` floats and give
      the same result; the gradient scores each chunk again, which adds a third
      to the products.
    group_size: number of rows that are scored at a time, and once more for the
      gradient. Rows with labels come first, and groups without any are not
      scored, which saves time if many rows are padding. None scores all rows at
      once.
    axis_name: the device axis over which `table` is sharded; None: it is whole.
      `n` is the same on every device.

  Returns:
    The losses `[n]`, 0 for a row without labels, and the best ids `[n]`, the
    first among equals; with `group_size` arbitrary for a row without labels.

  Raises:
    ValueError: If `chunk_size` or `group_size` is below 1.

  Example:
    >>> hidden, table = jnp.array([[0.0, 2.0, 1.0]]), jnp.eye(3)
    >>> losses, best = softmax_losses_and_best(
    ...   hidden, table, jnp.zeros(3), jnp.array([[0, 1]]),
    ...   where=jnp.array([[True, True]]), chunk_size=2,
    ... )
    >>> print(f'{losses[0]:.4f} = log(1 + e^2 + e) - (0 + 2) / 2; {best[0]}')
    1.4076 = log(1 + e^2 + e) - (0 + 2) / 2; 1

  Reference:
    Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW
    2018: the multinomial likelihood of a user's items. Shoeybi et al.,
    "Megatron-LM", 2019 (https://arxiv.org/abs/1909.08053): cross entropy over a
    sharded vocabulary.
  """
  check_size('chunk_size', chunk_size)
  check_size('group_size', group_size)
  hidden, table, bias = map(as_float, (hidden, table, bias))
  labels, where = jnp.asarray(labels), jnp.asarray(where)
  reduce = functools.partial(
    _reduce_scores, chunk_size=chunk_size, group_size=group_size
  )
  if axis_name is not None:
    reduce = functools.partial(_over_devices, reduce, axis_name)
  log_sums, own, _, best = reduce(hidden, table, bias, labels, where)
  return negative_log_likelihood(log_sums, own, where), best


def negative_log_likelihood(
  log_sums: Losses, own: Losses, where: Bool[Array, 'n k']
) -> Losses:
  """The negative mean log-likelihood of the labels of each row.

  Args:
    log_sums: `[n]`, log sum exp of the scores of all ids.
    own: `[n]`, sum of the scores of the labels.

  Returns:
    `[n]`, 0 for a row without labels.
  """
  count = jnp.sum(where, axis=1)
  losses = log_sums - own / jnp.maximum(count, 1)
  return jnp.where(count > 0, losses, 0)


def _reduce_scores(
  hidden: Float[Array, 'n dim'],
  table: Float[Array, 'ids dim'],
  bias: Float[Array, ' ids'],
  labels: Int[Array, 'n k'],
  where: Bool[Array, 'n k'],
  *,
  chunk_size: int | None,
  group_size: int | None,
) -> Reduced:
  """Reduces the scores of each row; ignores labels outside of 0..ids-1."""
  reduce = functools.partial(_reduce_chunks, chunk_size=chunk_size)
  if group_size is None:
    return reduce(hidden, table, bias, labels, where)
  has_labels = jnp.any(where, axis=1)
  order = jnp.argsort(~has_labels, stable=True)
  # Under shard_map, this zero makes the table vary over devices as the rows do.
  # Otherwise its gradient would be summed over devices while it is computed for
  # a group, and devices that skip the group would not take part.
  zero = 0 * jnp.sum(has_labels)
  found = reduce(
    hidden[order],
    table + zero.astype(table.dtype),
    bias + zero.astype(bias.dtype),
    labels[order],
    where[order],
    map_rows=functools.partial(
      map_chunks_where, where=has_labels[order], size=group_size
    ),
  )
  return jax.tree.map(operator.itemgetter(jnp.argsort(order)), found)


def _reduce_chunks(
  hidden: Float[Array, 'n dim'],
  table: Float[Array, 'ids dim'],
  bias: Float[Array, ' ids'],
  labels: Int[Array, 'n k'],
  where: Bool[Array, 'n k'],
  *,
  chunk_size: int | None,
  map_rows: Callable[..., tuple[Array, ...]] | None = None,
) -> Reduced:
  """Reduces the scores chunk by chunk of the items.

  Args:
    map_rows: applies a function to groups of rows: `map_chunks_where` with its
      settings. None: to all rows at once.
  """
  size = min(chunk_size or len(table), len(table))

  def of_chunk(first: Int[Array, '']) -> Reduced:
    """Reduces the scores of the ids `first`, `first + 1`, ... alone."""
    start, rows, chunk_bias = chunk_of(size, table, bias, first)

    def of_rows(
      hidden: Float[Array, 'm dim'],
      labels: Int[Array, 'm k'],
      where: Bool[Array, 'm k'],
    ) -> tuple[Array, Array, Array, Array]:
      scores = hidden @ rows.T + chunk_bias[None]
      index = labels - start
      inside = where & (labels >= first) & (index < size)
      # A separate product could be rounded differently on a GPU or TPU.
      own = jnp.take_along_axis(scores, jnp.where(inside, index, 0), axis=1)
      own = jnp.sum(own, axis=1, where=inside)
      top, best = max_and_first(scores)
      best = (start + best).astype(labels.dtype)
      return jax.nn.logsumexp(scores, axis=1), own, top, best

    if map_rows:
      return map_rows(of_rows, hidden, labels, where)
    return of_rows(hidden, labels, where)

  if size == len(table):
    return of_chunk(jnp.zeros((), labels.dtype))
  starts = jnp.arange(0, len(table), size, labels.dtype)
  # The gradient recomputes the scores of a chunk, so that none are kept.
  recomputed = of_chunk if map_rows else jax.checkpoint(of_chunk)
  return _combine(*lax.map(recomputed, starts))


def _combine(
  log_sums: Float[Array, 'parts n'],
  own: Float[Array, 'parts n'],
  top: Float[Array, 'parts n'],
  best: Int[Array, 'parts n'],
) -> Reduced:
  """Combines the reduced scores of parts of the ids, in order."""
  return (
    jax.nn.logsumexp(log_sums, axis=0),
    jnp.sum(own, axis=0),
    jnp.max(top, axis=0),
    # Among equal scores, the first part has the first id.
    pick(best, jnp.argmax(top, axis=0)),
  )


def _over_devices(
  reduce: Callable[..., Reduced],
  axis_name: str,
  hidden: Float[Array, 'n dim'],
  shard: Float[Array, 'rows dim'],
  bias: Float[Array, ' ids'],
  labels: Int[Array, 'n k'],
  where: Bool[Array, 'n k'],
) -> Reduced:
  """Reduces the scores of this device's rows over the shards of all devices."""
  rows, devices = len(shard), lax.axis_size(axis_name)
  first = lax.axis_index(axis_name) * rows
  # Rows of the shard beyond the ids have no share in the softmax.
  bias = jnp.pad(
    bias,
    (0, devices * rows - len(bias)),
    constant_values=jnp.finfo(bias.dtype).min,
  )
  hidden, labels, where = (
    lax.all_gather(x, axis_name, tiled=True) for x in (hidden, labels, where)
  )
  log_sums, own, top, best = reduce(
    hidden,
    shard,
    lax.dynamic_slice_in_dim(bias, first, rows),
    labels - first,
    where,
  )
  return _combine(
    *(
      lax.all_to_all(x.reshape(devices, -1), axis_name, 0, 0)
      for x in (log_sums, own, top, best + first)
    )
  )


def chunk_of(
  size: int,
  table: Float[Array, 'ids dim'],
  bias: Float[Array, ' ids'],
  first: Int[Array, ''],
) -> tuple[Int[Array, ''], Float[Array, 'size dim'], Float[Array, ' size']]:
  """Slices the ids `first`, `first + 1`, ..., into arrays of one size.

  Args:
    size: number of ids in a chunk, at most those of the table.
    bias: b; -inf is replaced by the least number.
    first: the first id of the chunk.

  Returns:
    The id of the first row, the rows of E, and their biases. The last chunk
    starts earlier than `first`, so that it has its size; the ids that the chunk
    before has scored get the least number as bias.
  """
  start = jnp.minimum(first, len(table) - size)
  rows = lax.dynamic_slice_in_dim(table, start, size)
  chunk_bias = lax.dynamic_slice_in_dim(bias, start, size)
  is_scored = start + jnp.arange(size) < first
  # Not -inf: the gradient of a chunk that has nothing else is nan.
  least = jnp.finfo(bias.dtype).min
  chunk_bias = jnp.where(is_scored, least, jnp.maximum(chunk_bias, least))
  return start, rows, chunk_bias


def pick(values: Num[Array, 'chunks n'], chunk: Ids) -> Num[Array, ' n']:
  """The value of each row in its chunk."""
  return jnp.take_along_axis(values, chunk[None], axis=0)[0]
