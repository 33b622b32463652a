"""The softmax over a catalogue for rows of which many have no labels.

Such rows are the padding of sequences. Arrays and letters are those of
`item_softmax`.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from adaptssr_jax.ops.item_softmax import softmax_losses_and_best
from adaptssr_jax.ops.microbatches import in_chunks
from adaptssr_jax.ops.reductions import as_float

# Scores of a group; 4 MiB of float32 stay in the cache until they are reread.
_SCORES_AT_ONCE = 2**20
# With fewer rows in a group, the table would be read too often.
_LEAST_ROWS = 128
# Ids that these rows are scored against at a time if the catalogue is large.
_CHUNK = 2048


def parts_at_once(ids: int) -> tuple[int, int | None]:
  """Numbers of rows and of ids that are scored at a time; None: all ids.

  Example:
    >>> parts_at_once(3707), parts_at_once(645_973)
    ((282, None), (128, 2048))
  """
  rows = _SCORES_AT_ONCE // ids
  return (rows, None) if rows >= _LEAST_ROWS else (_LEAST_ROWS, _CHUNK)


def real_softmax_losses_and_best(
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'ids dim'],
  bias: Float[ArrayLike, ' ids'],
  labels: Int[ArrayLike, 'n k'],
  *,
  where: Bool[ArrayLike, 'n k'],
  size: int,
  chunk_size: int | None = None,
) -> tuple[Float[Array, ' n'], Int[Array, ' n']]:
  """`softmax_losses_and_best`, computed only for the rows that have labels.

  Rows with labels are sorted to the front and processed `size` at a time, and
  once more for the gradient; groups without any are not scored.

  Args:
    hidden: `[n, dim]`.
    table: `[ids, dim]`.
    bias: `[ids]`.
    labels: `[n, k]`.
    where: Bool `[n, k]`. False masks a label.
    size: number of rows in a group.
    chunk_size: number of ids that are scored at a time, see
      `softmax_losses_and_best`.

  Returns:
    The losses `[n]`, 0 for a row without labels, and the best ids `[n]`,
    arbitrary for such a row.

  Raises:
    ValueError: If `size` is below 1.

  Example:
    >>> hidden, table = jnp.array([[9.0, 9.0], [1.0, 0.0]]), jnp.eye(2)
    >>> losses, best = real_softmax_losses_and_best(
    ...   hidden, table, jnp.zeros(2), jnp.array([[0], [0]]),
    ...   where=jnp.array([[False], [True]]), size=1,
    ... )
    >>> print(f'{losses[1]:.4f} = -log(e / (e + 1)); best {best[1]}')
    0.3133 = -log(e / (e + 1)); best 0
  """
  if size < 1:
    raise ValueError(f'size must be at least 1, not {size}.')
  rows = as_float(hidden), jnp.asarray(labels), jnp.asarray(where)
  has_labels = jnp.any(rows[2], axis=1)
  order = jnp.argsort(~has_labels, stable=True)
  hidden, labels, where = jax.tree.map(operator.itemgetter(order), rows)
  losses, best = softmax_losses_and_best(
    hidden,
    table,
    bias,
    labels,
    where=where,
    chunk_size=chunk_size,
    map_rows=functools.partial(_map_groups, where=has_labels[order], size=size),
  )
  back = jnp.argsort(order)
  return losses[back], best[back]


def _map_groups(
  function: Callable[..., tuple[Array, ...]],
  *rows: Shaped[Array, 'n ...'],
  where: Bool[Array, ' n'],
  size: int,
) -> tuple[Array, ...]:
  """Calls a function on `size` rows at a time, if any of them is in `where`.

  The results of other groups are zeros. The gradient calls the function again.
  """

  def of_group(group: tuple[Array, ...]) -> tuple[Array, ...]:
    where, *rows = group
    # Computed from the arguments, so that under shard_map they vary over the
    # same axes.
    zeros = 0 * sum(x.reshape(size, -1)[:, 0] for x in rows)
    kinds = jax.eval_shape(function, *rows)
    return lax.cond(
      jnp.any(where),
      lambda: function(*rows),
      lambda: tuple(zeros.astype(kind.dtype) for kind in kinds),
    )

  groups = in_chunks((where, *rows), size=size)
  # The gradient recomputes the scores, so that none are kept.
  found = lax.map(jax.checkpoint(of_group), groups)
  return tuple(x.reshape(-1)[: len(where)] for x in found)
