"""Losses that attract the views of a user and repel those of other users."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.microbatches import in_microbatches
from adaptssr_jax.ops.negatives import (
  most_similar,
  negative_similarities,
  negatives_of,
)
from adaptssr_jax.ops.reductions import (
  AxisName,
  ReduceFn,
  as_float,
  check_size,
  check_temperature,
  reduce_losses,
  zero_unless,
)
from adaptssr_jax.ops.similarity import exact_dot, smooth_max, unit_length

# Number of anchors whose similarities to all others are held at once.
_BLOCK = 256


def nt_xent_loss(
  users: Float[ArrayLike, 'views batch dim'],
  *,
  temperature: ArrayLike = 1.0,
  similarity: str = 'cosine',
  block_size: int | None = None,
  axis_name: AxisName | None = None,
  where: Bool[ArrayLike, ' batch'] | None = None,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  """Cross entropy of another view of the user among views of other users.

  Each view of a user is an anchor, with similarity p to another view of the
  user and n_j to all views of all other users:

      -log(exp(p / t) / (exp(p / t) + sum_j exp(n_j / t)))

  The loss of a user is the mean over the ordered pairs of its views. With two
  views this is NT-Xent.

  Args:
    users: `[views, batch, dim]`, of any scale; two views or more.
    temperature: t, positive.
    similarity: 'cosine', or 'dot' for the dot product of unscaled vectors.
    block_size: Number of users whose views are compared with all others at a
      time. None compares all users at once. Holds `[views * block_size, views *
      all]` similarities; loss and gradient are the same up to rounding.
    axis_name: The device axis over which users are sharded, see
      `adaptssr_loss`; the negatives are then the users of all devices.
    where: Bool `[batch]`. False marks padding users, which are neither anchors
      nor negatives.
    reduce_fn: Reduces the losses of users; None returns one per local user.

  Returns:
    The reduced loss, a scalar, 0 if `where` masks every user; or with
    `reduce_fn=None` the losses `[batch]`, 0 for masked users. A user without
    any negative has loss 0.

  Raises:
    ValueError: If `users` is not `[views, batch, dim]`, `similarity` is
      unknown, or `temperature` or `block_size` is not positive.

  Example:
    >>> users = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    >>> print(f'{nt_xent_loss(users):.4f} = -log(e / (e + 2))')
    0.5514 = -log(e / (e + 2))

  Reference:
    Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations" (SimCLR), ICML 2020, with the cosine.
  """
  if similarity not in ('cosine', 'dot'):
    raise ValueError(f"similarity must be 'cosine' or 'dot': {similarity!r}")
  check_temperature(temperature)
  check_size('block_size', block_size)
  users = _views_of_users(users, where)
  if similarity == 'cosine':
    users = unit_length(users)
  negatives, own = negatives_of(users[:, None], where, axis_name)
  # Not the products, which can be -inf: the gradient of a learned temperature
  # would be nan.
  scaled = users / temperature

  def log_sum(
    anchors: Float[Array, 'some dim'], own: Int[Array, ' some']
  ) -> Float[Array, 'some 1']:
    others = negative_similarities(anchors, own, negatives)
    return smooth_max(others, smooth=1.0)

  others = in_microbatches(
    log_sum,
    scaled.reshape(-1, users.shape[-1]),
    jnp.tile(own, len(users)),
    size=None if block_size is None else len(users) * block_size,
  ).reshape(len(users), 1, -1)
  # softplus(a - b) = -log(exp b / (exp a + exp b)).
  pairs = jax.nn.softplus(others - exact_dot('vbd,wbd->vwb', scaled, users))
  is_pair = ~jnp.eye(len(users), dtype=bool)[..., None]
  losses = jnp.mean(pairs, axis=(0, 1), where=is_pair)
  return reduce_losses(losses, where, reduce_fn, axis_name)


def coles_loss(
  users: Float[ArrayLike, 'views batch dim'],
  *,
  margin: float = 0.5,
  num_negatives: int = 5,
  axis_name: AxisName | None = None,
  where: Bool[ArrayLike, ' batch'] | None = None,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  """Contrastive margin loss of slices of histories.

  Slices of a user attract each other and repel the nearest slices of others.
  With |a - b| the distance of two vectors of length 1, the loss of a user is

      sum over pairs of its slices of |a - b|^2
        + sum over its slices a and their negatives n of
          max(0, margin - |a - n|)^2

  where the negatives of a are the `num_negatives` slices of other users that
  are nearest to a.

  Args:
    users: `[views, batch, dim]`, of any scale; two views or more.
    margin: The distance up to which negatives are repelled, at most 2.
    num_negatives: Number of negatives of each slice, the hardest ones.
    axis_name: See `nt_xent_loss`.
    where: See `nt_xent_loss`.
    reduce_fn: See `nt_xent_loss`; the published code sums over users, by
      `jnp.sum`.

  Returns:
    The reduced loss, a scalar, 0 if `where` masks every user; or with
    `reduce_fn=None` the losses `[batch]`, 0 for masked users.

  Raises:
    ValueError: If `users` is not `[views, batch, dim]`, or `margin` or
      `num_negatives` is not positive.

  Example:
    >>> slices = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.8, 0.6]]])
    >>> loss = coles_loss(slices, margin=1.0, num_negatives=1)
    >>> near = 1 - (0.2**2 + 0.6**2) ** 0.5
    >>> print(f'{loss:.4f} = {(0.8 + 3 * near**2) / 2:.4f}')
    0.6026 = 0.6026

  Reference:
    Babaev et al., "CoLES: Contrastive Learning for Event Sequences with
    Self-Supervision", SIGMOD 2022; the default margin and number of negatives
    are those of its published code.
  """
  if not margin > 0 or num_negatives < 1:
    raise ValueError(
      'margin and num_negatives must be positive, not '
      f'{margin} and {num_negatives}.'
    )
  users = unit_length(_views_of_users(users, where))
  negatives, own = negatives_of(users[:, None], where, axis_name)
  anchors = users.reshape(-1, users.shape[-1])
  similarities, nearest = most_similar(
    anchors,
    jnp.tile(own, len(users)),
    negatives,
    count=min(num_negatives, len(negatives.ids)),
    size=_BLOCK,
  )
  distances = _length(anchors[:, None] - negatives.vectors[nearest])
  pushed = jnp.square(jax.nn.relu(margin - distances))
  pushed = jnp.sum(pushed, axis=1, where=similarities > -jnp.inf).reshape(
    len(users), -1
  )
  apart = jnp.sum(jnp.square(users[:, None] - users[None]), axis=-1)
  # Each pair is in `apart` twice.
  losses = jnp.sum(apart, axis=(0, 1)) / 2 + jnp.sum(pushed, axis=0)
  return reduce_losses(losses, where, reduce_fn, axis_name)


def _views_of_users(
  users: Float[ArrayLike, '...'], where: Bool[ArrayLike, ' batch'] | None
) -> Float[Array, 'views batch dim']:
  """Checks the shape and zeroes padding."""
  shape = jnp.shape(users)
  if len(shape) != 3 or shape[0] < 2:
    raise ValueError(
      f'users must be [views, batch, dim] with 2 views or more, not {shape}: '
      'two views are jnp.stack([a, b]).'
    )
  if where is not None:
    where = jnp.broadcast_to(where, shape[:2])
  return zero_unless(where, as_float(users))


def _length(vectors: Float[Array, '*batch dim']) -> Float[Array, '*batch']:
  """The length of each vector; a zero vector has gradient 0, not nan."""
  square = jnp.sum(jnp.square(vectors), axis=-1)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
