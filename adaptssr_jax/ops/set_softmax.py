"""Softmax losses of sets of items, over all of a catalogue or a sample of it.

The letters are those of `item_softmax`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.item_softmax import bias_of_shard, scores_of_chunk
from adaptssr_jax.ops.reductions import as_float, check_size

Losses = Float[Array, ' n']


def distinct(items: Int[Array, 'n k']) -> Bool[Array, 'n k']:
  """Marks each item where it first stands in its row; 0 is padding.

  Args:
    items: `[n, k]`, ids.

  Returns:
    Bool `[n, k]`.

  Example:
    >>> distinct(jnp.array([[5, 7, 5, 0]])).tolist()
    [[True, True, False, False]]
  """
  # Equal ids keep their order, so that the first of them leads its run.
  order = jnp.argsort(items, axis=1, stable=True)
  ordered = jnp.take_along_axis(items, order, axis=1)
  is_new = jnp.diff(ordered, axis=1, prepend=0) != 0
  rows = jnp.arange(len(items))[:, None]
  return jnp.zeros(items.shape, bool).at[rows, order].set(is_new)


def set_softmax_losses(
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'ids dim'],
  bias: Float[ArrayLike, ' ids'],
  labels: Int[ArrayLike, 'n k'],
  *,
  where: Bool[ArrayLike, 'n k'],
  chunk_size: int | None = None,
) -> Losses:
  """Multinomial likelihood of the labels of each row.

  - mean over x in labels of log softmax(E h + b)[x]

  Args:
    bias: b; -inf, or the least number, for an id that is no class.
    labels: `[n, k]`, in 0..ids-1.
    where: Bool `[n, k]`, the labels that count.
    chunk_size: see `softmax_losses_and_best`.

  Returns:
    `[n]`, a loss per row, 0 for a row without labels.

  Raises:
    ValueError: If `chunk_size` is below 1.

  Example:
    >>> losses = set_softmax_losses(
    ...   jnp.array([[0.0, 2.0, 1.0]]), jnp.eye(3), jnp.zeros(3),
    ...   jnp.array([[0, 1]]), where=jnp.array([[True, True]]),
    ... )
    >>> print(f'{losses[0]:.4f} = log(1 + e^2 + e) - (0 + 2) / 2')
    1.4076 = log(1 + e^2 + e) - (0 + 2) / 2

  Reference:
    Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW
    2018: the multinomial likelihood of a user's items.
  """
  check_size('chunk_size', chunk_size)
  table, where = as_float(table), jnp.asarray(where)
  log_sums, own = _over_chunks(
    as_float(hidden),
    table,
    as_float(bias),
    jnp.asarray(labels),
    where,
    chunk_size=chunk_size or len(table),
  )
  return likelihood(log_sums, own, where)


def shard_set_softmax_losses(
  hidden: Float[Array, 'n dim'],
  shard: Float[Array, 'rows dim'],
  bias: Float[Array, ' ids'],
  labels: Int[Array, 'n k'],
  *,
  where: Bool[Array, 'n k'],
  chunk_size: int | None = None,
  axis_name: str,
) -> Losses:
  """`set_softmax_losses` where each device holds a part of the table.

  See `shard_softmax_losses_and_best` for how the devices share the work, and
  for the arguments; `labels` and `where` are `[n, k]`, of this device.
  """
  rows, devices = len(shard), lax.axis_size(axis_name)
  first, bias = bias_of_shard(bias, rows, axis_name)
  hidden, labels, everywhere = (
    lax.all_gather(x, axis_name, tiled=True) for x in (hidden, labels, where)
  )
  log_sums, own = _over_chunks(
    hidden,
    shard,
    bias,
    labels - first,
    everywhere,
    chunk_size=chunk_size or rows,
  )
  log_sums, own = (
    lax.all_to_all(x.reshape(devices, -1), axis_name, 0, 0)
    for x in (log_sums, own)
  )
  return likelihood(
    jax.nn.logsumexp(log_sums, axis=0), jnp.sum(own, axis=0), where
  )


def sampled_set_softmax_losses(
  sampled: Int[Array, ' m'],
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'ids dim'] | Callable[[Array], Array],
  bias: Float[ArrayLike, ' ids'],
  labels: Int[ArrayLike, 'n k'],
  *,
  where: Bool[ArrayLike, 'n k'],
) -> Losses:
  """Estimates `set_softmax_losses` from a sample of the other ids.

  With the scores z = E h + b, the distinct labels X of a row, and m ids s_j,
  drawn evenly and with replacement,

      log(sum_{x in X} e^z[x] + ids / m * sum_{j: s_j not in X} e^z[s_j])
        - mean over x in X of z[x]

  What is inside the first log is an unbiased estimate of the denominator of the
  softmax. So the loss is, on average, too low, the less so the larger m is.

  Args:
    sampled: `[m]`, s, the ids drawn, which all rows share; memory is `[n, m]`
      numbers.
    table: E; or a function of ids that gives their vectors.
    labels: `[n, k]`, in 0..ids-1.
    where: Bool `[n, k]`, the labels that count. One that counts twice does so
      in the mean, and once in the sum.

  Returns:
    `[n]`, a loss per row, 0 for a row without labels.

  Example:
    >>> hidden, table = jnp.ones((1, 2)), jnp.ones((1000, 2))
    >>> losses = sampled_set_softmax_losses(
    ...   jnp.array([3, 1, 4, 15]), hidden, table, jnp.zeros(1000),
    ...   jnp.array([[7]]), where=jnp.array([[True]]),
    ... )
    >>> print(f'{losses[0]:.4f} = log(1 + 1000 / 4 * 4)')
    6.9088 = log(1 + 1000 / 4 * 4)

  Reference:
    Bengio & Senecal, "Quick Training of Probabilistic Neural Nets by Importance
    Sampling", AISTATS 2003; Jean et al., "On Using Very Large Target Vocabulary
    for Neural Machine Translation", ACL 2015: one draw for the whole batch.
  """
  hidden, bias = as_float(hidden), as_float(bias)
  labels, where = jnp.asarray(labels), jnp.asarray(where)
  # One gather: its gradient is one array as large as the table, two are two.
  ids = jnp.concatenate([labels.reshape(-1), sampled])
  rows = table(ids) if callable(table) else as_float(table)[ids]
  own_rows, rows = jnp.split(rows, [labels.size])
  own = jnp.einsum('nd,nkd->nk', hidden, own_rows.reshape(*labels.shape, -1))
  own += bias[labels]
  others = hidden @ rows.T + bias[sampled][None]
  others += jnp.log(len(bias) / len(sampled))

  # Label by label, to hold no table of labels x samples for each row.
  def mark(
    found: Bool[Array, 'n m'],
    label: tuple[Int[Array, ' n'], Bool[Array, ' n']],
  ) -> tuple[Bool[Array, 'n m'], None]:
    """Which samples are one of the labels so far, or this one."""
    ids, counts = label
    return found | ((sampled[None] == ids[:, None]) & counts[:, None]), None

  found = jnp.zeros(others.shape, bool)
  found, _ = lax.scan(mark, found, (labels.T, where.T))
  # To which 0 is nothing; a label alone is the first.
  first = where
  if labels.shape[1] > 1:
    first = distinct(jnp.where(where, labels + 1, 0))
  scores = jnp.concatenate(
    [jnp.where(first, own, -jnp.inf), jnp.where(found, -jnp.inf, others)],
    axis=1,
  )
  # A row without labels has its samples; one whose samples are all labels has
  # its labels.
  log_sums = jax.nn.logsumexp(scores, axis=1)
  return likelihood(log_sums, jnp.sum(own, axis=1, where=where), where)


def likelihood(
  log_sums: Losses, own: Losses, where: Bool[Array, 'n k']
) -> Losses:
  """The negative mean log-likelihood of the labels of each row.

  Args:
    log_sums: `[n]`, log sum exp of the scores of all ids.
    own: `[n]`, sum of the scores of the labels.
    where: Bool `[n, k]`, the labels that count.

  Returns:
    `[n]`, 0 for a row without labels.
  """
  count = jnp.sum(where, axis=1)
  losses = log_sums - own / jnp.maximum(count, 1)
  return jnp.where(count > 0, losses, 0)


def _over_chunks(
  hidden: Float[Array, 'n dim'],
  table: Float[Array, 'ids dim'],
  bias: Float[Array, ' ids'],
  labels: Int[Array, 'n k'],
  where: Bool[Array, 'n k'],
  *,
  chunk_size: int,
) -> tuple[Losses, Losses]:
  """Computes log sum exp z of each row, and the sum of z over its labels.

  Labels outside of 0..ids-1 are those of another part of the table.
  """
  size = min(chunk_size, len(table))

  def of_chunk(first: Int[Array, '']) -> tuple[Losses, Losses]:
    """The part that the ids `first`, `first + 1`, ... have in either sum."""
    start, scores = scores_of_chunk(size, hidden, table, bias, first)
    index = labels - start
    inside = where & (labels >= first) & (index < size)
    # Not a product of its own, which a GPU or TPU might round otherwise.
    own = jnp.take_along_axis(scores, jnp.where(inside, index, 0), axis=1)
    return jax.nn.logsumexp(scores, axis=1), jnp.sum(own, axis=1, where=inside)

  if size == len(table):
    return of_chunk(jnp.zeros((), labels.dtype))
  starts = jnp.arange(0, len(table), size, labels.dtype)
  # The gradient recomputes the scores of a chunk, so that none are kept.
  log_sums, own = lax.map(jax.checkpoint(of_chunk), starts)
  return jax.nn.logsumexp(log_sums, axis=0), jnp.sum(own, axis=0)
