"""Softmax losses over a catalogue, however large, on one device or split.

Of `n` rows and a catalogue of `ids`, here and in the files beside this one,

  hidden  h, a vector of each row, [n, dim]
  table   E, a vector of each id, [ids, dim]
  bias    b, a number of each id, [ids]
  labels  an id in 0..ids-1 of each row, [n]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from adaptssr_jax.ops.reductions import (
  as_float,
  check_size,
  max_and_first,
)

Losses = Float[Array, ' n']
Ids = Int[Array, ' n']


def softmax_losses_and_best(
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'ids dim'],
  bias: Float[ArrayLike, ' ids'],
  labels: Int[ArrayLike, ' n'],
  *,
  chunk_size: int | None = None,
) -> tuple[Losses, Ids]:
  """Cross entropy of the label of each row, and the id that scores best.

  -log softmax(E h + b)[label]  and  argmax(E h + b)

  Args:
    chunk_size: None scores all ids at once, `[n, ids]` numbers. Otherwise so
      many at a time, `[n, chunk_size]` numbers, and once more for the gradient:
      as exact, a third more products, and the memory of one chunk.

  Returns:
    `[n]`, a loss per row, and `[n]`, an id per row; of equal ones the first.

  Raises:
    ValueError: If `chunk_size` is below 1.

  Example:
    >>> hidden, table = jnp.array([[0.0, 2.0, 1.0]]), jnp.eye(3)
    >>> losses, best = softmax_losses_and_best(
    ...   hidden, table, jnp.zeros(3), jnp.array([2]), chunk_size=2
    ... )
    >>> print(f'{losses[0]:.4f} = log(1 + e^2 + e) - 1; best {best[0]}')
    1.4076 = log(1 + e^2 + e) - 1; best 1
  """
  hidden, table, bias = as_float(hidden), as_float(table), as_float(bias)
  labels = jnp.asarray(labels)
  if chunk_size is None:
    logits = hidden @ table.T + bias[None]
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=1) - own
    return losses, max_and_first(logits)[1].astype(labels.dtype)
  check_size('chunk_size', chunk_size)
  log_sums, own, _, best = softmax_of_chunks(
    hidden, table, bias, labels, chunk_size=chunk_size
  )
  return log_sums - own, best


def softmax_of_chunks(
  hidden: Float[Array, 'n dim'],
  table: Float[Array, 'ids dim'],
  bias: Float[Array, ' ids'],
  labels: Ids,
  *,
  chunk_size: int,
  map_rows: Callable[..., tuple[Array, ...]] | None = None,
) -> tuple[Losses, Losses, Losses, Ids]:
  """What a softmax needs of the scores z = E h + b of each row.

  Args:
    labels: `[n]`; one that is not in 0..ids-1 has a score without meaning.
    chunk_size: ids scored at a time.
    map_rows: calls a function of some rows and their labels on all of them, and
      keeps no scores for the gradient; None: on all at once.

  Returns:
    `[n]` each: log sum exp z, the label's score, the highest score, its id.
  """
  size = min(chunk_size, len(table))

  def of_chunk(first: Int[Array, '']) -> tuple[Losses, Losses, Losses, Ids]:
    """Log sum exp, the label's score if it is here, the highest, its id."""
    start, rows, chunk_bias = _chunk(size, table, bias, first)

    def of_rows(
      hidden: Float[Array, 'm dim'], labels: Int[Array, ' m']
    ) -> tuple[Array, Array, Array, Array]:
      scores = hidden @ rows.T + chunk_bias[None]
      # Not a product of its own, which a GPU or TPU might round otherwise.
      own = jnp.take_along_axis(scores, (labels - start)[:, None], axis=1)
      top, first = max_and_first(scores)
      best = (start + first).astype(labels.dtype)
      return jax.nn.logsumexp(scores, axis=1), own[:, 0], top, best

    if map_rows:
      return map_rows(of_rows, hidden, labels)
    return of_rows(hidden, labels)

  starts = jnp.arange(0, len(table), size)
  # The gradient recomputes the scores of a chunk, so that none are kept.
  recomputed = of_chunk if map_rows else jax.checkpoint(of_chunk)
  log_sums, own, top, best = lax.map(recomputed, starts)
  # The label is in one chunk; the best id is in the first of the highest.
  own = pick(own, jnp.clip(labels // size, 0, len(own) - 1))
  best = pick(best, jnp.argmax(top, axis=0))
  return jax.nn.logsumexp(log_sums, axis=0), own, jnp.max(top, axis=0), best


def scores_of_chunk(
  size: int,
  hidden: Float[Array, 'n dim'],
  table: Float[Array, 'ids dim'],
  bias: Float[Array, ' ids'],
  first: Int[Array, ''],
) -> tuple[Int[Array, ''], Float[Array, 'n size']]:
  """Scores E h + b of the ids `first`, `first + 1`, ..., in arrays of one size.

  Args:
    size: ids of a chunk, at most those of the table.
    bias: b; -inf is taken for the least number.
    first: of the chunk.

  Returns:
    The id of the first column, and `[n, size]` scores. The last chunk starts
    earlier than `first`, so that it has its size; what the chunk before has
    counted scores the least number.
  """
  start, rows, chunk_bias = _chunk(size, table, bias, first)
  return start, hidden @ rows.T + chunk_bias[None]


def _chunk(
  size: int,
  table: Float[Array, 'ids dim'],
  bias: Float[Array, ' ids'],
  first: Int[Array, ''],
) -> tuple[Int[Array, ''], Float[Array, 'size dim'], Float[Array, ' size']]:
  """The first id of `scores_of_chunk`, its rows of E, and its biases."""
  start = jnp.minimum(first, len(table) - size)
  rows = lax.dynamic_slice_in_dim(table, start, size)
  chunk_bias = lax.dynamic_slice_in_dim(bias, start, size)
  counted = start + jnp.arange(size) < first
  # Not -inf: a whole chunk of it has a gradient of nan.
  least = jnp.finfo(bias.dtype).min
  chunk_bias = jnp.where(counted, least, jnp.maximum(chunk_bias, least))
  return start, rows, chunk_bias


def pick(values: Num[Array, 'chunks n'], chunk: Ids) -> Num[Array, ' n']:
  """The number of each row that belongs to one of the chunks."""
  return jnp.take_along_axis(values, chunk[None], axis=0)[0]


def shard_softmax_losses_and_best(
  hidden: Float[Array, 'n dim'],
  shard: Float[Array, 'rows dim'],
  bias: Float[Array, ' ids'],
  labels: Ids,
  *,
  chunk_size: int | None = None,
  axis_name: str,
) -> tuple[Losses, Ids]:
  """`softmax_losses_and_best` where each device holds a part of the table.

  log sum_i e^z_i = log sum_d e^(log sum_{i of d} e^z_i)

  Every device scores the rows of `hidden` of all devices against its part of
  the ids, and gives each device back what it needs of its own rows.

  Args:
    hidden: of this device; as many on every device.
    shard: `[rows, dim]`, this device's rows of E; of the last devices some may
      be beyond the ids.
    bias: of all ids.
    labels: of this device.
    chunk_size: ids scored at a time, see `softmax_losses_and_best`.
    axis_name: the axis of the devices.

  Returns:
    `[n]`, a loss per row of this device, and `[n]`, the id that scores best, of
    equal ones the first.

  Reference:
    Shoeybi et al., "Megatron-LM", 2019 (https://arxiv.org/abs/1909.08053):
    cross entropy over a vocabulary that is split.
  """
  rows, devices = len(shard), lax.axis_size(axis_name)
  first, bias = bias_of_shard(bias, rows, axis_name)
  log_sums, own, top, best = softmax_of_chunks(
    lax.all_gather(hidden, axis_name, tiled=True),
    shard,
    bias,
    lax.all_gather(labels, axis_name, tiled=True) - first,
    chunk_size=chunk_size or rows,
  )
  log_sums, own, top, best = [
    lax.all_to_all(x.reshape(devices, -1), axis_name, 0, 0)
    for x in (log_sums, own, top, best + first)
  ]
  losses = jax.nn.logsumexp(log_sums, axis=0) - pick(own, labels // rows)
  return losses, pick(best, jnp.argmax(top, axis=0))


def bias_of_shard(
  bias: Float[Array, ' ids'], rows: int, axis_name: str
) -> tuple[Int[Array, ''], Float[Array, ' rows']]:
  """The first id that this device holds, and the biases of its ids.

  Args:
    bias: `[ids]`, of all ids.
    rows: how many ids each device holds; of the last devices, some may be
      beyond the ids, and have no share in a softmax.
    axis_name: the axis of the devices.
  """
  first = lax.axis_index(axis_name) * rows
  beyond = lax.axis_size(axis_name) * rows - len(bias)
  least = jnp.finfo(bias.dtype).min
  bias = jnp.pad(bias, (0, beyond), constant_values=least)
  return first, lax.dynamic_slice_in_dim(bias, first, rows)
