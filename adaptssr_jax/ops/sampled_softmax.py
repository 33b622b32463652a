"""Softmax losses of sets of items, estimated from a sample of the catalogue.

Arrays and letters are those of `item_softmax`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.item_softmax import Losses, negative_log_likelihood
from adaptssr_jax.ops.reductions import as_float


def distinct(items: Int[Array, 'n k']) -> Bool[Array, 'n k']:
  """Marks the first occurrence of each item in its row; 0 is padding.

  Args:
    items: `[n, k]`, ids.

  Returns:
    Bool `[n, k]`.

  Example:
    >>> distinct(jnp.array([[5, 7, 5, 0]])).tolist()
    [[True, True, False, False]]
  """
  # The sort is stable: the first of a run of equal ids is the first of its row.
  order = jnp.argsort(items, axis=1, stable=True)
  ordered = jnp.take_along_axis(items, order, axis=1)
  is_new = jnp.diff(ordered, axis=1, prepend=0) != 0
  rows = jnp.arange(len(items))[:, None]
  return jnp.zeros(items.shape, bool).at[rows, order].set(is_new)


def sampled_softmax_losses(
  sampled: Int[Array, ' m'],
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'ids dim'] | Callable[[Array], Array],
  bias: Float[ArrayLike, ' ids'],
  labels: Int[ArrayLike, 'n k'],
  *,
  where: Bool[ArrayLike, 'n k'],
) -> Losses:
  """Estimates `softmax_losses_and_best` from a sample of the other ids.

  With the scores z = E h + b, the distinct labels X of a row, and m ids s_j
  that are drawn uniformly with replacement,

      log(sum_{x in X} e^z[x] + ids / m * sum_{j: s_j not in X} e^z[s_j])
        - mean over x in X of z[x]

  The argument of the log is an unbiased estimate of the denominator of the
  softmax. So the loss is too low on average; the bias shrinks with larger m.

  Args:
    sampled: `[m]`, the ids s, which all rows share. Memory is `[n, m]` floats.
    table: `[ids, dim]`; or a function from ids to their vectors.
    labels: `[n, k]`, in 0..ids-1. A label that occurs twice has twice the
      weight in the mean, and is in X once.

  Returns:
    The losses `[n]`, 0 for a row without labels.

  Example:
    >>> hidden, table = jnp.ones((1, 2)), jnp.ones((1000, 2))
    >>> losses = sampled_softmax_losses(
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
  # One gather, since the gradient of each is an array as large as the table.
  ids = jnp.concatenate([labels.reshape(-1), sampled])
  rows = table(ids) if callable(table) else as_float(table)[ids]
  own_rows, rows = jnp.split(rows, [labels.size])
  own = jnp.einsum('nd,nkd->nk', hidden, own_rows.reshape(*labels.shape, -1))
  own += bias[labels]
  others = hidden @ rows.T + bias[sampled][None]
  others += jnp.log(len(bias) / len(sampled))

  # Label by label, to avoid an array [n, k, m].
  def mark(
    found: Bool[Array, 'n m'],
    label: tuple[Int[Array, ' n'], Bool[Array, ' n']],
  ) -> tuple[Bool[Array, 'n m'], None]:
    """Marks samples that are this label, in addition to those found so far."""
    ids, where = label
    return found | ((sampled[None] == ids[:, None]) & where[:, None]), None

  found = jnp.zeros(others.shape, bool)
  found, _ = lax.scan(mark, found, (labels.T, where.T))
  first = where
  if labels.shape[1] > 1:
    # The ids are shifted by one, since 0 is padding for `distinct`.
    first = distinct(jnp.where(where, labels + 1, 0))
  scores = jnp.concatenate(
    [jnp.where(first, own, -jnp.inf), jnp.where(found, -jnp.inf, others)],
    axis=1,
  )
  # Not empty: a row without labels has its samples, and a row whose samples are
  # all labels has its labels.
  log_sums = jax.nn.logsumexp(scores, axis=1)
  return negative_log_likelihood(
    log_sums, jnp.sum(own, axis=1, where=where), where
  )
