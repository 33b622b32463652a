"""Dropout with one random byte per element, and a seed per row."""

import functools
import math

import jax
import jax.export
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, UInt8, UInt32


@jax.named_scope('dropout')
def dropout(
  seeds: UInt32[Array, 'rows 2'] | None,
  x: Float[Array, 'rows *shape'],
  *,
  rate: float,
) -> Float[Array, 'rows *shape']:
  """Zeroes random elements of x and scales the others to keep the mean.

  y = x * 1[byte >= n] * 256 / (256 - n),  n = round(256 * rate) in 1..255

  An element takes one random byte; `jax.random.bernoulli` takes four. So the
  rate is rounded to a multiple of 1/256, to at least 1/256 and at most 255/256
  unless it is 0, and the scale is that of the rounded rate. The mask of a row
  depends only on its seed, not on padding, see `random_bytes`.

  Args:
    seeds: `[rows, 2]`, as from `row_seeds`; None returns x unchanged.
    x: `[rows, ...]`.
    rate: probability that an element is zeroed, in [0, 1).

  Returns:
    `[rows, ...]`.

  Example:
    >>> seeds = row_seeds(jax.random.split(jax.random.key(0), 2), draws=1)
    >>> y = dropout(seeds[:, 0], jnp.ones((2, 8)), rate=0.5)
    >>> sorted(set(y.reshape(-1).tolist()))
    [0.0, 2.0]
  """
  if seeds is None or rate == 0:
    return x
  dropped = min(max(round(256 * rate), 1), 255)
  draw = functools.partial(
    random_bytes,
    shape=x.shape[1:],
    # A program that is exported for any number of rows cannot be called if it
    # has a bitcast to another number of axes.
    bitcast=not jax.export.is_symbolic_dim(x.shape[0]),
  )
  keep = jax.vmap(draw)(seeds) >= dropped
  return jnp.where(keep, x * (256 / (256 - dropped)), 0)


@jax.named_scope('dropout')
def row_seeds(
  keys: Key[Array, 'rows'], *, draws: int
) -> UInt32[Array, 'rows draws 2']:
  """Makes `draws` dropout seeds of two words from each typed key."""
  draw = functools.partial(jax.random.bits, shape=(draws, 2), dtype=jnp.uint32)
  return jax.vmap(draw)(keys)


def random_bytes(
  seed: UInt32[Array, '2'], shape: tuple[int, ...], *, bitcast: bool = True
) -> UInt8[Array, '...']:
  """Draws bytes whose values do not change if the last two axes grow.

  Byte j of row t of sequence s is byte j mod 4 of

      h(h((h((t * sequences + s) ^ seed_0) + seed_1) ^ (j // 4)))

  where h is the hash `mixed`. So the bytes of an array do not depend on its
  padding, for states [length, features] as well as attention weights [heads,
  length, length]. It takes a third of the time of threefry, whose guarantees
  dropout does not need.

  Args:
    seed: two words.
    shape: `[..., rows, columns]`, or shorter.
    bitcast: False takes the bytes out of words by shifts. They are the same.

  Returns:
    Bytes of this shape.

  Example:
    >>> seed = jnp.array([1, 2], jnp.uint32)
    >>> few, many = random_bytes(seed, (2, 3, 5)), random_bytes(seed, (2, 4, 9))
    >>> bool((few == many[:, :3, :5]).all())
    True
  """
  *sequences, rows, columns = (1, 1, *shape)[-max(len(shape), 2) :]
  counters = (math.prod(sequences), rows, math.ceil(columns / 4))
  s, t, j = (lax.broadcasted_iota(jnp.uint32, counters, i) for i in range(3))
  row = mixed((t * counters[0] + s) ^ seed[0]) + seed[1]
  words = mixed(mixed(row ^ j))
  if bitcast:
    draws = lax.bitcast_convert_type(words, jnp.uint8)
  else:
    shifts = 8 * lax.broadcasted_iota(jnp.uint32, (*counters, 4), 3)
    draws = (words[..., None] >> shifts).astype(jnp.uint8)
  draws = draws.reshape(*counters[:2], 4 * counters[2])[..., :columns]
  return draws.reshape(shape)


def mixed(x: UInt32[Array, '*shape']) -> UInt32[Array, '*shape']:
  """A bijective hash; flipping one input bit flips half of the output bits.

  Reference:
    Wellons, "Prospecting for Hash Functions", 2018: lowbias32.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
