"""What edits of one behaviour sequence have in common."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

# A share of the behaviours: a number, whose ceil(ratio * n) is exact, or an
# array, which may change from step to step, and is not checked.
Ratio = float | int | Float[Array, '']


def is_real(items: Int[ArrayLike, ' length']) -> Bool[Array, ' length']:
  """Tells which are behaviours, and no padding."""
  return jnp.asarray(items) != 0


def length_and_size(
  items: Int[ArrayLike, ' length'], ratio: Ratio
) -> tuple[Int[Array, ''], Int[Array, '']]:
  """Returns `n`, the number of behaviours, and `ceil(ratio * n)`."""
  n = jnp.sum(is_real(items), dtype=jnp.int32)
  if isinstance(ratio, jax.Array):
    # What is whole but for rounding must stay whole.
    size = jnp.ceil(ratio * n * (1 - 1e-6)).astype(jnp.int32)
    return n, jnp.clip(size, jnp.minimum(n, 1), n)
  if not 0 < ratio <= 1:
    raise ValueError(f'ratio must be in (0, 1], not {ratio}.')
  # Made on the host in float64: in float32, ceil(0.6 * 25) is 16.
  sizes = np.ceil(ratio * np.arange(len(items) + 1)).astype(np.int32)
  return n, jnp.asarray(sizes)[n]


def random_positions(
  key: PRNGKeyArray,
  among: Bool[Array, ' length'],
  size: Int[ArrayLike, ''],
) -> Bool[Array, ' length']:
  """Draws distinct positions, each set of them equally likely.

  Args:
    key: A random key.
    among: `[length]`, the positions that may be drawn.
    size: How many are drawn; all of them if there are fewer.

  Returns:
    `[length]`, True at those that are drawn.
  """
  # What may not be drawn sorts last. A stable sort ranks ties too: the count is
  # exact even if two draws are equal.
  draws = jnp.where(among, jax.random.uniform(key, among.shape), jnp.inf)
  ranks = jnp.argsort(jnp.argsort(draws))
  return among & (ranks < size)
