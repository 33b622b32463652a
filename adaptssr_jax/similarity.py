"""Cosines that stay right where numbers break."""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from adaptssr_jax.reductions import AxisName, gather


def unit_length(
  vectors: Float[Array, '*batch dim'],
) -> Float[Array, '*batch dim']:
  """Gives each vector length 1, and a zero vector and its gradient zeros."""
  # Squares overflow unless the largest entry is brought to 1 first. The cosine
  # does not depend on this scale, so neither does its gradient.
  scale = lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True))
  vectors = vectors / jnp.maximum(scale, 1e-12)
  # Now at least 1, unless the vector is zero: its gradient must stay finite.
  square = jnp.sum(vectors**2, axis=-1, keepdims=True)
  return vectors * lax.rsqrt(jnp.maximum(square, 0.5))


def exact_dot(spec: str, left: Array, right: Array) -> Array:
  """`jnp.einsum` in full precision.

  The default one of GPU and TPU would round the ranks of close users.
  """
  return jnp.einsum(spec, left, right, precision=lax.Precision.HIGHEST)


def other_users(
  users: Float[Array, '2 2 batch dim'],
  where: Bool[ArrayLike, ' batch'] | None,
  axis_name: AxisName | None,
) -> tuple[Float[Array, '2 2 all dim'], Bool[Array, 'batch all']]:
  """Returns the users of all devices, and who is no other user of whom."""
  rows = jnp.arange(users.shape[2])
  if axis_name is not None:
    rows += lax.axis_index(axis_name) * len(rows)
    users = gather(users, axis_name, axis=2)
    where = gather(where, axis_name)
  absent = rows[:, None] == jnp.arange(users.shape[2])[None, :]
  if where is not None:
    absent |= ~jnp.asarray(where)[None, :]
  return users, absent
