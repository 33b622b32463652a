"""Diagnostics of user vectors during training, which detect a collapse.

All similarities are cosines. The results carry no gradient. If `where` masks
every user they are 0, not nan.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import entr
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.microbatches import map_chunks
from adaptssr_jax.ops.negatives import Negatives, is_other_user, negatives_of
from adaptssr_jax.ops.reductions import AxisName, as_float, zero_unless
from adaptssr_jax.ops.similarity import (
  exact_dot,
  join_passes,
  unit_length,
  unit_users,
)

# Number of users whose cosines with all others are held at once.
_BLOCK = 256


class ViewSimilarities(NamedTuple):
  """The similarities that AdaptSSR ranks: per user, the mean over its anchors.

  Args:
    implicit: mean similarity of an anchor to its implicit view, the same view
      under the other dropout mask, `[batch]`.
    explicit: mean similarity to both passes of the other views of the user,
      `[batch]`.
    other: mean similarity to all vectors of all other users, `[batch]`.
    hardest: similarity to the most similar vector of another user, `[batch]`.
    implicit_over_explicit: share of (implicit, explicit) pairs in which the
      implicit view is strictly more similar to the anchor, `[batch]`.
    explicit_over_other: share of (explicit, negative) pairs in which the
      explicit view is strictly more similar to the anchor, `[batch]`.
  """

  implicit: Float[Array, ' batch']
  explicit: Float[Array, ' batch']
  other: Float[Array, ' batch']
  hardest: Float[Array, ' batch']
  implicit_over_explicit: Float[Array, ' batch']
  explicit_over_other: Float[Array, ' batch']


def view_similarities(
  users: Float[ArrayLike, 'views 2 batch dim'],
  *,
  anchors: int | None = None,
  where: Bool[ArrayLike, ' batch'] | None = None,
  axis_name: AxisName | None = None,
) -> ViewSimilarities:
  """Computes the similarities that AdaptSSR ranks, for each user of a batch.

  The anchors of a user are the first passes of its explicit views; each result
  is the mean over them.

  Args:
    users: `[views, 2, batch, dim]`, see `adaptssr_loss`.
    anchors: Number of users of this device to measure, the first ones; None
      measures all. Computes `2 * views * anchors * all` cosines.
    where: Bool `[batch]`. False marks padding users, which are neither anchors
      nor other users.
    axis_name: The device axis over which users are sharded; the other users
      are then those of all devices.

  Returns:
    `ViewSimilarities` of arrays `[anchors]`, for the first users of this
    device. They are 0 for padding users; `other`, `hardest` and
    `explicit_over_other` are also 0 if there is no other user. Average them
    over `where`. Memory: `2 * views * 256 * all` cosines and as many
    comparisons.

  Example:
    >>> view = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> users = jnp.stack([jnp.stack([view, view]), jnp.stack([view, -view])])
    >>> found = view_similarities(users)
    >>> print(found.implicit, found.explicit, found.hardest)
    [0. 0.] [0.5 0.5] [0. 0.]

  Reference:
    Yu et al., AdaptSSR, NeurIPS 2023, for the order of the similarities. The
    two shares are the accuracies that the authors' published code logs.
  """
  users = lax.stop_gradient(unit_users(users, where))
  negatives, own = negatives_of(users, where, axis_name)
  own, users = own[:anchors], users[:, :, :anchors]
  where = None if where is None else jnp.asarray(where)[:anchors]
  rank = functools.partial(_rank_views, negatives)
  rotations = [jnp.roll(users, -view, axis=0) for view in range(len(users))]
  found = [
    map_chunks(
      rank,
      own,
      views[0, 0],
      views[0, 1],
      jnp.swapaxes(join_passes(views[1:]), 0, 1),
      size=_BLOCK,
    )
    for views in rotations
  ]
  means = jax.tree.map(lambda *values: sum(values) / len(values), *found)
  return jax.tree.map(functools.partial(zero_unless, where), means)


def _rank_views(
  negatives: Negatives,
  own: Int[Array, ' batch'],
  anchors: Float[Array, 'batch dim'],
  implicit_view: Float[Array, 'batch dim'],
  explicit_views: Float[Array, 'batch explicit dim'],
) -> ViewSimilarities:
  """The similarities of some anchors, of vectors of length 1."""
  implicit = exact_dot('bd,bd->b', anchors, implicit_view)
  explicit = exact_dot('bd,bvd->bv', anchors, explicit_views)
  other = exact_dot('bd,nd->bn', anchors, negatives.vectors)
  exists = is_other_user(own, negatives.ids)
  count = jnp.sum(exists, axis=-1)
  # A batch of one has no other users: all sums and shares are 0.
  at_least_one = jnp.maximum(count, 1).astype(other.dtype)
  nearer = explicit[:, :, None] > other[:, None, :]
  nearer = jnp.sum(nearer & exists[:, None, :], axis=(-2, -1))
  hardest = jnp.max(other, axis=-1, where=exists, initial=-jnp.inf)
  return ViewSimilarities(
    implicit=implicit,
    explicit=jnp.mean(explicit, axis=-1),
    other=jnp.sum(other, axis=-1, where=exists) / at_least_one,
    hardest=jnp.where(count > 0, hardest, 0),
    implicit_over_explicit=jnp.mean(implicit[:, None] > explicit, axis=-1),
    explicit_over_other=nearer.astype(other.dtype)
    / (explicit.shape[1] * at_least_one),
  )


def uniformity(
  users: Float[ArrayLike, 'batch dim'],
  *,
  where: Bool[ArrayLike, ' batch'] | None = None,
) -> Float[Array, '']:
  """Computes how evenly users are spread over the unit sphere.

      log mean_{i != j} exp(-2 |u_i - u_j|^2)

  It is 0 if all users are at one point, -4 if all are orthogonal, and never
  below -8. All pairs are compared, `256 * batch` cosines at a time.

  Args:
    users: `[batch, dim]`, one vector per user, of any scale. A zero vector is
      treated as orthogonal to all others.
    where: Bool `[batch]`. False masks a user.

  Returns:
    A scalar, 0 for fewer than two unmasked users.

  Example:
    >>> print(f'{uniformity(jnp.eye(3)):.4f}')
    -4.0000

  Reference:
    Wang and Isola, "Understanding Contrastive Representation Learning through
    Alignment and Uniformity on the Hypersphere", ICML 2020, with t = 2.
  """
  users = _unit(users, where)
  valid = jnp.ones(len(users), bool) if where is None else jnp.asarray(where)

  def potential(row: Int[Array, '']) -> Float[Array, '']:
    """The sum of exp(-2 |u_row - u_j|^2) over the other unmasked users."""
    cosines = exact_dot('d,nd->n', users[row], users)
    others = valid & (jnp.arange(len(users)) != row)
    return jnp.sum(jnp.exp(4 * (cosines - 1)), where=others)

  rows = lax.map(potential, jnp.arange(len(users)), batch_size=_BLOCK)
  count = jnp.sum(valid, dtype=users.dtype)
  mean = jnp.sum(rows, where=valid) / jnp.maximum(count * (count - 1), 1)
  return jnp.where(count > 1, jnp.log(jnp.where(count > 1, mean, 1)), 0)


def mean_cosine(
  users: Float[ArrayLike, 'batch dim'],
  *,
  where: Bool[ArrayLike, ' batch'] | None = None,
) -> Float[Array, '']:
  """Computes the mean cosine over all pairs of different users.

      mean_{i != j} u_i . u_j = (|sum_i u_i|^2 - sum_i |u_i|^2) / (n (n - 1))

  Takes one pass over the users instead of comparing all pairs.

  Args:
    users: `[batch, dim]`, one vector per user, of any scale.
    where: Bool `[batch]`. False masks a user.

  Returns:
    A scalar in -1..1, 0 for fewer than two unmasked users.

  Example:
    >>> users = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    >>> print(f'{mean_cosine(users):.4f} = 1 / 3')
    0.3333 = 1 / 3
  """
  users = _unit(users, where)
  valid = jnp.ones(len(users)) if where is None else jnp.asarray(where)
  count = jnp.maximum(jnp.sum(valid, dtype=users.dtype), 1)
  # Means, because the squared sum of many users would lose precision.
  mean = jnp.sum(users, axis=0) / count
  square = jnp.sum(users**2) / count
  others = jnp.maximum(count - 1, 1)
  cosine = (count * exact_dot('d,d->', mean, mean) - square) / others
  return jnp.where(count > 1, cosine, 0)


def effective_rank(
  users: Float[ArrayLike, 'batch dim'],
  *,
  where: Bool[ArrayLike, ' batch'] | None = None,
) -> Float[Array, '']:
  """Computes the effective number of dimensions that the users span.

      exp(-sum_k p_k log p_k),    p_k = s_k / sum_l s_l

  with the singular values s of the matrix of user vectors, scaled to length 1.
  The mean is not subtracted, so that a collapse of all users to one point has
  rank 1.

  Args:
    users: `[batch, dim]`, one vector per user, of any scale.
    where: Bool `[batch]`. False masks a user.

  Returns:
    A scalar in 1..min(batch, dim), 0 if `where` masks every user.

  Example:
    >>> print(f'{effective_rank(jnp.eye(3)):.2f}')
    3.00
    >>> print(f'{effective_rank(jnp.ones((5, 3))):.2f}')
    1.00

  Reference:
    Roy and Vetterli, "The effective rank: a measure of effective
    dimensionality", EUSIPCO 2007.
  """
  values = jnp.linalg.svd(_unit(users, where), compute_uv=False)
  total = jnp.sum(values)
  shares = values / jnp.maximum(total, 1e-12)
  return jnp.where(total > 0, jnp.exp(jnp.sum(entr(shares))), 0)


def _unit(
  users: Float[ArrayLike, 'batch dim'],
  where: Bool[ArrayLike, ' batch'] | None,
) -> Float[Array, 'batch dim']:
  """Zeroes masked users and scales all others to length 1."""
  users = lax.stop_gradient(as_float(users))
  return unit_length(zero_unless(where, users))
