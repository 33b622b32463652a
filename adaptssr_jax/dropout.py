"""Dropout that spends a byte of randomness on an element."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class Dropout(nn.Module):
  """Zeroes a share of x and scales the rest, so that the mean stays.

  y = x * 1[byte >= n] * 256 / (256 - n),  n = round(256 * rate) in 1..255

  An element spends a random byte, where `jax.random.bernoulli` spends four. So
  the rate is rounded to a multiple of 1/256, though only 0 becomes 0 and
  nothing becomes 1, and the scale belongs to the rounded rate.

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
    words = math.ceil(x.size / 4)
    bits = jax.random.bits(self.make_rng('dropout'), (words,), jnp.uint32)
    draws = lax.bitcast_convert_type(bits, jnp.uint8).ravel()[: x.size]
    keep = draws.reshape(x.shape) >= dropped
    return jnp.where(keep, x * (256 / (256 - dropped)), 0)
