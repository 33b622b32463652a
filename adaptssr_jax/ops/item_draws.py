"""Draws of items from the softmax over a catalogue of any size.

Arrays and letters are those of `item_softmax`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax.ops.item_softmax import chunk_of, pick
from adaptssr_jax.ops.reductions import as_float, check_size

# Ids in a block. Draws take cumulative sums over blocks, then over one block.
_BLOCK = 64


def draw_ids(
  keys: Key[Array, ' n'],
  hidden: Float[ArrayLike, 'n dim'],
  table: Float[ArrayLike, 'ids dim'],
  bias: Float[ArrayLike, ' ids'],
  *,
  chunk_size: int | None = None,
) -> Int[Array, ' n']:
  """Draws an id for each row, from softmax(E h + b).

  First a chunk of ids is drawn by its share of the probability, then a block of
  that chunk, then an id of that block, each with its own uniform number. So a
  row uses three random numbers for any number of ids. No gradient is computed.

  Args:
    keys: `[n]`, one key per row; the draw of a row depends only on its key.
    bias: `[ids]`; an id with -inf or the least number is never drawn.
    chunk_size: number of ids that are scored at a time, in `[n, chunk_size]`
      floats; None: all.

  Returns:
    `[n]`, in 0..ids-1.

  Raises:
    ValueError: If `chunk_size` is below 1.

  Example:
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> bias = jnp.array([-jnp.inf, 0.0, -jnp.inf])
    >>> draw_ids(keys, jnp.ones((4, 2)), jnp.ones((3, 2)), bias).tolist()
    [1, 1, 1, 1]
  """
  check_size('chunk_size', chunk_size)
  hidden, table, bias = (
    lax.stop_gradient(as_float(x)) for x in (hidden, table, bias)
  )
  size = min(chunk_size or len(table), len(table))
  # All chunks can use the same numbers, since only one of them is drawn.
  draw = functools.partial(jax.random.uniform, shape=(3,))
  of_chunk, of_block, of_id = jax.vmap(draw)(keys).T

  def draw_in_chunk(first: Int[Array, '']) -> tuple[Array, Array]:
    """Log sum exp of the ids `first`, `first + 1`, ..., and a draw of one."""
    start, rows, chunk_bias = chunk_of(size, table, bias, first)
    scores = hidden @ rows.T + chunk_bias[None]
    top = jnp.max(scores, axis=1)
    weights = jnp.exp(scores - top[:, None])
    weights = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK)))
    blocks = weights.reshape(len(weights), -1, _BLOCK)
    sums = jnp.sum(blocks, axis=2)
    block = _index(of_block, sums)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    index = block * _BLOCK + _index(of_id, inside)
    return top + jnp.log(jnp.sum(sums, axis=1)), start + index

  log_sums, ids = lax.map(draw_in_chunk, jnp.arange(0, len(table), size))
  shares = jnp.exp(log_sums - jnp.max(log_sums, axis=0, keepdims=True))
  return pick(ids, _index(of_chunk, shares.T))


def _index(
  share: Float[Array, ' n'], weights: Float[Array, 'n k']
) -> Int[Array, ' n']:
  """The first index whose cumulative weight exceeds a share of the total."""
  sums = jnp.cumsum(weights, axis=1)
  beyond = sums > share[:, None] * sums[:, -1:]
  # Rounding can make the share of the total exceed all cumulative weights.
  return jnp.where(
    jnp.any(beyond, axis=1),
    jnp.argmax(beyond, axis=1),
    jnp.argmax(weights, axis=1),
  )
