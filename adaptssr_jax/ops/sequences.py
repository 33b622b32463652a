"""What edits of one behaviour sequence have in common."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, PRNGKeyArray

Edit = Callable[[PRNGKeyArray, ArrayLike], Array]


def is_real(items: Int[ArrayLike, ' length']) -> Bool[Array, ' length']:
  """Tells which are behaviours, and no padding."""
  return jnp.asarray(items) != 0


def length_and_size(
  items: Int[ArrayLike, ' length'], ratio: float | int
) -> tuple[Int[Array, ''], Int[Array, '']]:
  """Returns `n`, the number of behaviours, and `ceil(ratio * n)`."""
  if not 0 < ratio <= 1:
    raise ValueError(f'ratio must be in (0, 1], not {ratio}.')
  # Made on the host in float64: in float32, ceil(0.6 * 25) is 16.
  sizes = np.ceil(ratio * np.arange(len(items) + 1)).astype(np.int32)
  n = jnp.sum(is_real(items), dtype=jnp.int32)
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


def by_length(short: Edit, long: Edit, *, most: int) -> Edit:
  """Makes an augmentation that applies one to short sequences, else another.

  Args:
    short: Of sequences of at most `most` behaviours, (key, items) -> items.
    long: Of all others.
    most: How many behaviours a short sequence has at most.

  Returns:
    A function `(key, items) -> items`.

  Example:
    >>> edit = by_length(lambda _, x: x + 1, lambda _, x: x - 1, most=2)
    >>> key = jax.random.key(0)
    >>> edit(key, jnp.array([7, 7, 0]))[0], edit(key, jnp.array([7, 7, 7]))[0]
    (Array(8, dtype=int32), Array(6, dtype=int32))
  """
  return functools.partial(_apply_by_length, short, long, most)


def _apply_by_length(
  short: Edit,
  long: Edit,
  most: int,
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
) -> Int[Array, ' length']:
  is_short = jnp.sum(is_real(items)) <= most
  return jax.lax.cond(is_short, short, long, key, items)
