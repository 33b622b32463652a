"""The softmax over a catalogue of items, at the real positions of sequences."""

import operator

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.item_softmax import softmax_losses_and_best
from adaptssr_jax.ops.microbatches import in_chunks
from adaptssr_jax.ops.reductions import as_float

# So many scores, 4 MiB of them, are still near when they are read again.
_SCORES_AT_ONCE = 2**20
# Fewer rows than these would read the table too often.
_LEAST_ROWS = 128


def rows_at_once(ids: int) -> int | None:
  """How many rows are scored at a time; None where the catalogue is too large.

  Example:
    >>> rows_at_once(3707), rows_at_once(645_973)
    (282, None)
  """
  rows = _SCORES_AT_ONCE // ids
  return rows if rows >= _LEAST_ROWS else None


def real_softmax_losses_and_best(
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'ids dim'],
  bias: Float[ArrayLike, ' ids'],
  labels: Int[ArrayLike, ' n'],
  *,
  where: Bool[ArrayLike, ' n'],
  size: int,
) -> tuple[Float[Array, ' n'], Int[Array, ' n']]:
  """`softmax_losses_and_best` of the rows that count, in their time alone.

  -log softmax(E h + b)[label]  and  argmax(E h + b)

  The rows that count are put first and taken `size` at a time, once more for
  the gradient; groups in which none counts are not scored.

  Args:
    hidden: `[n, dim]`, h, a vector per row.
    table: `[ids, dim]`, E, a vector per id.
    bias: `[ids]`, b, a number per id.
    labels: `[n]`, in 0..ids-1.
    where: `[n]`, False where a row does not count.
    size: rows of a group.

  Returns:
    `[n]`, a loss per row, and `[n]`, the id that scores best; of no meaning,
    though finite, where a row does not count.

  Raises:
    ValueError: If `size` is below 1.

  Example:
    >>> hidden, table = jnp.array([[9.0, 9.0], [1.0, 0.0]]), jnp.eye(2)
    >>> losses, best = real_softmax_losses_and_best(
    ...   hidden, table, jnp.zeros(2), jnp.array([0, 0]),
    ...   where=jnp.array([False, True]), size=1,
    ... )
    >>> print(f'{losses[1]:.4f} = -log(e / (e + 1)); best {best[1]}')
    0.3133 = -log(e / (e + 1)); best 0
  """
  if size < 1:
    raise ValueError(f'size must be at least 1, not {size}.')
  rows = as_float(hidden), jnp.asarray(labels), jnp.asarray(where)
  order = jnp.argsort(~rows[2], stable=True)
  groups = in_chunks(jax.tree.map(operator.itemgetter(order), rows), size=size)
  table, bias = as_float(table), as_float(bias)

  def score(
    group: tuple[
      Float[Array, 'rows dim'], Int[Array, ' rows'], Bool[Array, ' rows']
    ],
  ) -> tuple[Float[Array, ' rows'], Int[Array, ' rows']]:
    """The losses and best ids of a group; zeros where no row counts."""
    hidden, labels, where = group
    return lax.cond(
      jnp.any(where),
      lambda: softmax_losses_and_best(hidden, table, bias, labels),
      # Zeros of the arguments, so that under shard_map they vary as those do.
      lambda: (0 * hidden[:, 0], 0 * labels),
    )

  # The gradient scores a group again: keeping all scores is what we avoid.
  found = lax.map(jax.checkpoint(score), groups)
  back = jnp.argsort(order)
  losses, best = (x.reshape(-1)[back] for x in found)
  return losses, best
