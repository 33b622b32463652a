"""Functions of large batches, computed in parts to need less memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped

from adaptssr_jax.ops.reductions import check_size


def in_microbatches(
  encode: Callable[..., Any], *args: Any, size: int | None
) -> Any:
  """Encodes `size` rows at a time and keeps only the results.

  The gradient encodes each microbatch again, with the same random draws, and
  sums the gradients of the microbatches. It costs one more forward pass, and
  needs the memory for the activations of one microbatch. Values and gradients
  equal those of `encode(*args)` up to rounding.

  Args:
    encode: (arrays [m, ...], ...) -> arrays [m, ...], for any m; the result of
      a row depends only on this row. Rows of zeros, which fill the last
      microbatch, must be valid.
    *args: arrays [rows, ...], such as sequences, or keys for dropout.
    size: Number of rows in a microbatch. None, or at least `rows`, encodes all
      at once.

  Returns:
    What `encode(*args)` returns.

  Raises:
    ValueError: If `size` is below 1.

  Example:
    >>> in_microbatches(jnp.sin, jnp.zeros((5, 2)), size=2).shape
    (5, 2)

  Reference:
    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup", RepL4NLP 2021: GradCache, here as a JAX loop whose steps are
    recomputed for the gradient.
  """
  if _at_once(args, size):
    return encode(*args)
  # The loop already keeps the compiler from merging the two forward passes.
  recomputed = jax.checkpoint(encode, prevent_cse=False)
  return map_chunks(recomputed, *args, size=size)


def map_chunks(
  function: Callable[..., Any], *args: Any, size: int | None
) -> Any:
  """Calls a function on `size` rows at a time, in a loop.

  It differs from `in_microbatches` only in that the gradient does not recompute
  the function.
  """
  if _at_once(args, size):
    return function(*args)
  rows = len(jax.tree.leaves(args)[0])
  parts = lax.map(lambda chunk: function(*chunk), in_chunks(args, size=size))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], parts)


def map_chunks_where(
  function: Callable[..., tuple[Array, ...]],
  *rows: Shaped[Array, 'n ...'],
  where: Bool[Array, ' n'],
  size: int,
) -> tuple[Array, ...]:
  """Calls a function on `size` rows at a time, if any of them is in `where`.

  The results of other chunks are zeros. The gradient calls the function again.

  Args:
    function: (arrays [m, ...], ...) -> a tuple of arrays [m].
    *rows: arrays [n, ...].
    where: which rows are needed.
    size: Number of rows in a chunk.

  Returns:
    The results `[n]`.
  """

  def of_chunk(chunk: tuple[Array, ...]) -> tuple[Array, ...]:
    where, *rows = chunk
    # Computed from the arguments, so that under shard_map they vary over the
    # same axes.
    zeros = 0 * sum(x.reshape(size, -1)[:, 0] for x in rows)
    kinds = jax.eval_shape(function, *rows)
    return lax.cond(
      jnp.any(where),
      lambda: function(*rows),
      lambda: tuple(zeros.astype(kind.dtype) for kind in kinds),
    )

  # The gradient recomputes the function, so that nothing is kept.
  found = lax.map(
    jax.checkpoint(of_chunk), in_chunks((where, *rows), size=size)
  )
  return tuple(x.reshape(-1)[: len(where)] for x in found)


def in_chunks(arrays: Any, *, size: int) -> Any:
  """Splits arrays [rows, ...] into [chunks, size, ...], for `jax.lax.map`.

  The last chunk is filled up with rows of zeros, also in arrays of keys.

  Args:
    arrays: a pytree of arrays with the same number of rows.
    size: Number of rows in a chunk.

  Returns:
    The pytree of arrays [chunks, size, ...].

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
