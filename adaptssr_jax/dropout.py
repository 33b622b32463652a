"""Dropout that spends a byte of randomness on an element."""

import math

import flax.linen as nn
import jax
import jax.extend.random
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, UInt8


class Dropout(nn.Module):
  """Zeroes a share of x and scales the rest, so that the mean stays.

  y = x * 1[byte >= n] * 256 / (256 - n),  n = round(256 * rate) in 1..255

  An element spends a random byte, where `jax.random.bernoulli` spends four. So
  the rate is rounded to a multiple of 1/256, though only 0 becomes 0 and
  nothing becomes 1, and the scale belongs to the rounded rate. What is dropped
  does not depend on padding, see `random_bytes`.

  Attributes:
    rate: The share of zeroes, in [0, 1).

  Example:
    >>> rngs = {'dropout': jax.random.key(0)}
    >>> x = jnp.ones(8)
    >>> y = Dropout(0.5).apply({}, x, deterministic=False, rngs=rngs)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: Float[Array, '*shape'], *, deterministic: bool
  ) -> Float[Array, '*shape']:
    """Drops out with the key of 'dropout', unless `deterministic`."""
    if deterministic or self.rate == 0:
      return x
    dropped = min(max(round(256 * self.rate), 1), 255)
    keep = random_bytes(self.make_rng('dropout'), x.shape) >= dropped
    return jnp.where(keep, x * (256 / (256 - dropped)), 0)


def random_bytes(
  key: Key[Array, ''], shape: tuple[int, ...]
) -> UInt8[Array, '...']:
  """Draws bytes that stay where they are when the last two axes grow.

  Byte j of row t of sequence s is byte j mod 8 of
  threefry(key, (t * sequences + s, j // 8)).

  So the draws of a padded array begin with those of the array, be it states
  [batch, length, features] or attention [batch, heads, length, length].

  Args:
    key: of the draws.
    shape: `[..., rows, columns]`, or shorter.

  Returns:
    Bytes of this shape.

  Example:
    >>> key = jax.random.key(0)
    >>> few, many = random_bytes(key, (2, 3, 5)), random_bytes(key, (2, 4, 9))
    >>> bool((few == many[:, :3, :5]).all())
    True

  Reference:
    Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
  """
  *sequences, rows, columns = (1, 1, *shape)[-max(len(shape), 2) :]
  # Two words of any kind of key: a threefry key is not the only one.
  words = jax.random.bits(key, (2,), jnp.uint32)
  counters = (math.prod(sequences), rows, math.ceil(columns / 8))
  s, t, j = (lax.broadcasted_iota(jnp.uint32, counters, i) for i in range(3))
  counts = jnp.stack([t * counters[0] + s, j])
  hashed = jax.extend.random.threefry_2x32(words, counts)
  # The two words of a hash side by side: eight bytes of a row.
  bits = jnp.moveaxis(hashed, 0, -1)
  draws = lax.bitcast_convert_type(bits, jnp.uint8)
  draws = draws.reshape(*counters[:2], 8 * counters[2])[..., :columns]
  return draws.reshape(shape)
