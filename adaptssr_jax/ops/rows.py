"""Look-up of rows that does not hide wrong ids."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


def take_rows(
  table: Float[ArrayLike, 'rows dim'], ids: Int[ArrayLike, '...']
) -> Float[Array, '... dim']:
  """Looks up rows by their ids.

  Plain indexing returns another row for an id that the table does not have:
  the last one for -1 and for ids that are too large.

  Args:
    table: `[rows, dim]`.
    ids: of any shape, in 0..rows-1.

  Returns:
    `[..., dim]`, nan for an id that the table does not have.

  Example:
    >>> take_rows(jnp.array([[5.0], [7.0]]), jnp.array([1, 2, -1]))[:, 0]
    Array([ 7., nan, nan], dtype=float32)
  """
  rows = jnp.asarray(table).at[jnp.asarray(ids)]
  return rows.get(mode='fill', fill_value=jnp.nan, wrap_negative_indices=False)
