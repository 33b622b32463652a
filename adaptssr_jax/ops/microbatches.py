"""Large batches in the memory of small ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptssr_jax.ops.reductions import check_size


def in_microbatches(
  encode: Callable[..., Any], *args: Any, size: int | None
) -> Any:
  """Encodes `size` rows at a time, and keeps nothing of them but the results.

  The gradient encodes each microbatch again, with the same random draws, and
  adds up what the microbatches contribute to the parameters: a forward pass
  more, and the activations of one microbatch. Values and gradients are those of
  `encode(*args)`, to rounding.

  Args:
    encode: (arrays [m, ...], ...) -> arrays [m, ...], for any m, each row on
      its own. Rows of zeros must be legal: they fill up the last microbatch.
    *args: arrays [rows, ...], such as sequences, or keys for dropout.
    size: rows of a microbatch. None, or at least `rows`, encodes all at once.

  Returns:
    What `encode(*args)` returns.

  Raises:
    ValueError: If `size` is below 1.

  Example:
    >>> in_microbatches(jnp.sin, jnp.zeros((5, 2)), size=2).shape
    (5, 2)

  Reference:
    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup", RepL4NLP 2021: GradCache, here as a loop of JAX whose steps
    are computed again for the gradient.
  """
  if _at_once(args, size):
    return encode(*args)
  # The loop already keeps the compiler from merging the two forward passes.
  again = jax.checkpoint(encode, prevent_cse=False)
  return map_chunks(again, *args, size=size)


def map_chunks(
  function: Callable[..., Any], *args: Any, size: int | None
) -> Any:
  """Calls a function of rows on `size` of them at a time, in a loop.

  As `in_microbatches`, but the gradient keeps what the function lets it keep.
  """
  if _at_once(args, size):
    return function(*args)
  rows = len(jax.tree.leaves(args)[0])
  parts = lax.map(lambda chunk: function(*chunk), in_chunks(args, size=size))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], parts)


def in_chunks(arrays: Any, *, size: int) -> Any:
  """Splits arrays [rows, ...] into [chunks, size, ...], for `jax.lax.map`.

  The last chunk is filled up with rows of zeros, also of keys.

  Args:
    arrays: any structure of arrays with as many rows.
    size: rows of a chunk.

  Returns:
    The same structure of arrays.

  Example:
    >>> in_chunks(jnp.array([1, 2, 3]), size=2).tolist()
    [[1, 2], [3, 0]]
  """

  def split(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    # jnp.pad refuses keys.
    fill = lax.full_like(x, 0, shape=(-len(x) % size, *x.shape[1:]))
    return jnp.concatenate([x, fill]).reshape(-1, size, *x.shape[1:])

  return jax.tree.map(split, arrays)


def _at_once(args: Any, size: int | None) -> bool:
  check_size('size', size)
  return size is None or size >= len(jax.tree.leaves(args)[0])
