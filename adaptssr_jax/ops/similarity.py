"""Cosine similarities that are safe for zero, tiny and huge vectors."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from adaptssr_jax.ops.reductions import as_float, zero_unless


def unit_length(
  vectors: Float[Array, '*batch dim'],
) -> Float[Array, '*batch dim']:
  """Scales each vector to length 1; a zero vector stays 0, with gradient 0."""
  # Squares would overflow unless the largest entry is scaled to 1 first. The
  # cosine does not depend on this scale, so neither does its gradient.
  scale = lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True))
  vectors = vectors / jnp.maximum(scale, 1e-12)
  # At least 1 now, unless the vector is zero, whose gradient must stay finite.
  square = jnp.sum(vectors**2, axis=-1, keepdims=True)
  return vectors * lax.rsqrt(jnp.maximum(square, 0.5))


def unit_users(
  users: Float[ArrayLike, '...'], where: Bool[ArrayLike, ' batch'] | None
) -> Float[Array, 'views 2 batch dim']:
  """Checks the shape, zeroes padding, and scales all vectors to length 1."""
  shape = jnp.shape(users)
  if len(shape) != 4 or shape[0] < 2 or shape[1] != 2:
    raise ValueError(
      'users must be [views, 2, batch, dim] = (explicit view, dropout pass, '
      f'user, feature), not {shape}: two views are '
      'jnp.stack([jnp.stack([a, a_again]), jnp.stack([b, b_again])]).'
    )
  if where is not None:
    where = jnp.broadcast_to(where, jnp.shape(users)[:3])
  return unit_length(zero_unless(where, as_float(users)))


def cosines(
  anchors: Float[Array, 'batch dim'], views: Float[Array, 'views batch dim']
) -> Float[Array, 'batch views']:
  """The cosines of each anchor with its own views, all of length 1."""
  return exact_dot('bd,vbd->bv', anchors, views)


def join_passes(
  users: Float[Array, 'views passes batch dim'],
) -> Float[Array, 'vectors batch dim']:
  """Joins the first two axes; with -1, `reshape` would refuse no users."""
  views, passes, *shape = users.shape
  return users.reshape(views * passes, *shape)


def smooth_max(
  values: Float[Array, '*batch n'], *, smooth: ArrayLike
) -> Float[Array, '*batch 1']:
  """The maximum over the last axis, or a smooth upper bound of it.

  s log sum exp(x / s), and max x in the limit s = 0

  Args:
    values: `[..., n]`; -inf marks missing values.
    smooth: s.

  Returns:
    `[..., 1]`; -inf, with zero gradient, if all values are missing.

  Example:
    >>> print(f'{smooth_max(jnp.zeros(2), smooth=1.0)[0]:.4f} = log 2')
    0.6931 = log 2
  """
  if not isinstance(smooth, jax.core.Tracer) and not smooth:
    return jnp.max(values, axis=-1, keepdims=True, initial=-jnp.inf)
  exists = values > -jnp.inf
  some = jnp.any(exists, axis=-1, keepdims=True)
  # If all values are -inf, the gradient of the sum would be nan.
  values = jnp.where(some, values, 0)
  largest = smooth * jax.nn.logsumexp(values / smooth, axis=-1, keepdims=True)
  return jnp.where(some, largest, -jnp.inf)


def exact_dot(spec: str, left: Array, right: Array) -> Array:
  """`jnp.einsum` in full precision.

  The default precision of GPUs and TPUs can swap the ranks of close users.
  """
  return jnp.einsum(spec, left, right, precision=lax.Precision.HIGHEST)
