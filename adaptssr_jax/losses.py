"""Losses: functions of arrays that return a scalar.

Arrays of any float type are converted to float32, except that float64 is kept;
the loss has that type, and gradients have the types of the arrays.

All losses share their last arguments. `where` is a boolean mask: examples where
it is False do not contribute and get zero gradient. `reduce_fn` reduces the
losses of the examples; it is called as `reduce_fn(losses)`, or with a mask as
`reduce_fn(losses, where=where)`. With None, one loss per example is returned.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.contrastive_losses import coles_loss, nt_xent_loss
from adaptssr_jax.ops.microbatches import in_microbatches
from adaptssr_jax.ops.negatives import (
  Negatives,
  most_similar,
  negative_similarities,
  negatives_of,
)
from adaptssr_jax.ops.ranking_losses import listwise_ranking_loss, mpr_loss
from adaptssr_jax.ops.reductions import (
  AxisName,
  ReduceFn,
  as_float,
  check_size,
  reduce_losses,
  zero_unless,
)
from adaptssr_jax.ops.similarity import (
  cosines,
  exact_dot,
  join_passes,
  unit_users,
)

__all__ = [
  'adaptssr_loss',
  'augmentation_weight',
  'bpr_loss',
  'coles_loss',
  'listwise_ranking_loss',
  'mpr_loss',
  'nt_xent_loss',
]


def adaptssr_loss(
  users: Float[ArrayLike, 'views 2 batch dim'],
  *,
  fusion: str | ArrayLike = 'adaptive',
  form: str = 'pairs',
  hard_negatives: bool = True,
  temperature: ArrayLike = 1.0,
  smooth: float = 0.0,
  block_size: int | None = None,
  axis_name: AxisName | None = None,
  where: Bool[ArrayLike, ' batch'] | None = None,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  """Augmentation-adaptive self-supervised ranking of user vectors.

  The anchor of user `i` is the first pass of one explicit view, its implicit
  view is the second pass, its explicit views are both passes of the other
  views, and its negatives are the vectors of every other user. Similarity is
  the cosine. With two views, as in the paper, the loss of a user is

      (mpr_loss(anchors of view 0) + mpr_loss(anchors of view 1)) / 2

  and with more the mean over all of them.

  Args:
    users: `[views, 2, batch, dim]` = (explicit view, dropout pass, user,
      feature), of any scale; two views or more.
    fusion: How `augmentation_weight` sets lambda: 'adaptive', 'batch_mean' or a
      number.
    form: 'pairs', the paper's loss (`mpr_loss`), or 'list'
      (`listwise_ranking_loss`).
    hard_negatives: For 'pairs': use only the hardest pair of each anchor.
    temperature: Divides the similarities; 1 in the paper.
    smooth: For hard pairs, the smoothness of `mpr_loss`; 0 in the paper.
    block_size: Number of users whose anchors are compared with all negatives at
      a time. None compares all users at once. Holds `[block_size, 2 * views *
      all]` similarities; loss and gradient are the same up to rounding. Among
      equally hard negatives, the first gets the gradient; with None, all share
      it.
    axis_name: The `jax.pmap` or `jax.shard_map` axis over which users are
      sharded. Negatives and 'batch_mean' then cover all devices of the axis.
      The loss is the same on each device; the gradient of a parameter, averaged
      by `jax.lax.pmean`, equals that of the whole batch on one device.
    where: Bool `[batch]`. False marks padding users, which are neither anchors
      nor negatives.
    reduce_fn: Reduces the losses of users; None returns one per local user.

  Returns:
    The reduced loss, a scalar, 0 if `where` masks every user; or with
    `reduce_fn=None` the losses `[batch]`, 0 for masked users.

  Raises:
    ValueError: If `users` is not `[views, 2, batch, dim]`, `fusion` or `form`
      is unknown, `block_size` is below 1, `temperature` is not positive, or
      `smooth` or `hard_negatives=False` is given where there are no such pairs.

  Example:
    >>> users = jnp.broadcast_to(jnp.eye(2), (2, 2, 2, 2))
    >>> print(f'{adaptssr_loss(users):.4f} = -log sigma(0 * (1 - 1) + 1 - 0)')
    0.3133 = -log sigma(0 * (1 - 1) + 1 - 0)

  Reference:
    Yu et al., "AdaptSSR: Pre-training User Model with Augmentation-Adaptive
    Self-Supervised Ranking", NeurIPS 2023: the symmetric loss over a batch.
  """
  check_size('block_size', block_size)
  if form not in ('pairs', 'list'):
    raise ValueError(f"form must be 'pairs' or 'list', not {form!r}.")
  if form == 'list' and (smooth or not hard_negatives):
    raise ValueError(
      "form='list' takes neither smooth nor hard_negatives=False."
    )
  users = unit_users(users, where)
  negatives, own = negatives_of(users, where, axis_name)
  weight = functools.partial(
    augmentation_weight, fusion=fusion, where=where, axis_name=axis_name
  )
  loss = listwise_ranking_loss
  if form == 'pairs':
    loss = functools.partial(
      mpr_loss, hard_negatives=hard_negatives, smooth=smooth
    )
  anchors_loss = functools.partial(
    _anchors_loss,
    loss=functools.partial(loss, temperature=temperature, reduce_fn=None),
    own=own,
    negatives=negatives,
    only_hardest=form == 'pairs' and hard_negatives and not smooth,
    block_size=block_size,
  )
  # The first pass of each view is an anchor once.
  rotations = [jnp.roll(users, -view, axis=0) for view in range(len(users))]
  losses = sum(anchors_loss(views, weight=weight(views)) for views in rotations)
  return reduce_losses(losses / len(rotations), where, reduce_fn, axis_name)


def bpr_loss(
  positive: Float[ArrayLike, '*examples'],
  negative: Float[ArrayLike, '*examples'],
  *,
  where: Bool[ArrayLike, '*examples'] | None = None,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  """Bayesian personalised ranking: a positive item above a negative one.

      -log sigma(positive - negative)

  Args:
    positive: `[...]`, scores of items that the user chose.
    negative: `[...]`, scores of items that the user did not choose.
    where: Bool `[...]`. False masks a pair.
    reduce_fn: Reduces the losses of pairs; None returns one per pair.

  Returns:
    The reduced loss, a scalar, 0 if `where` masks every pair; or with
    `reduce_fn=None` the losses `[...]`, 0 for masked pairs.

  Example:
    >>> print(f'{bpr_loss(jnp.array([1.5]), jnp.array([0.5])):.4f}')
    0.3133

  Reference:
    Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback",
    UAI 2009.
  """
  positive = zero_unless(where, as_float(positive))
  negative = zero_unless(where, as_float(negative))
  losses = -jax.nn.log_sigmoid(positive - negative)
  return reduce_losses(losses, where, reduce_fn)


def _anchors_loss(
  views: Float[Array, 'views 2 batch dim'],
  *,
  weight: Float[Array, '*#batch'],
  loss: Callable[..., Float[Array, ' batch']],
  own: Int[Array, ' batch'],
  negatives: Negatives,
  only_hardest: bool,
  block_size: int | None,
) -> Float[Array, ' batch']:
  """The ranking losses of the anchors `views[0, 0]`, all of length 1."""
  anchors = views[0, 0]
  implicit = cosines(anchors, views[0, 1:])
  explicit = cosines(anchors, join_passes(views[1:]))
  # Without users there is no hardest negative to look for.
  if only_hardest and block_size is not None and len(anchors):
    # One product per anchor is differentiated, so nothing is recomputed.
    best, index = most_similar(
      anchors, own, negatives, count=1, size=block_size
    )
    hardest = exact_dot('bd,bnd->bn', anchors, negatives.vectors[index])
    hardest = jnp.where(best == -jnp.inf, -jnp.inf, hardest)
    return loss(implicit, explicit, hardest, weight=weight)

  def loss_of(
    anchors: Float[Array, 'some dim'],
    own: Int[Array, ' some'],
    implicit: Float[Array, 'some p'],
    explicit: Float[Array, 'some s'],
    weight: Float[Array, ' some'],
  ) -> Float[Array, ' some']:
    negative = negative_similarities(anchors, own, negatives)
    return loss(implicit, explicit, negative, weight=weight)

  weight = jnp.broadcast_to(weight, own.shape)
  return in_microbatches(
    loss_of, anchors, own, implicit, explicit, weight, size=block_size
  )


def augmentation_weight(
  users: Float[ArrayLike, 'views 2 batch dim'],
  *,
  fusion: str | ArrayLike,
  where: Bool[ArrayLike, ' batch'] | None = None,
  axis_name: AxisName | None = None,
) -> Float[Array, '...']:
  """Lambda, the weight of the ranking loss: how dissimilar a user's views are.

  'adaptive' is one lambda per user: the mean is over all pairs of dropout
  passes of two different views (four pairs for two views). 'batch_mean' is one
  number for the batch: the mean over users, and over the pairs of `users[0, 0]`
  with each pass of the other views:

      adaptive    lambda_i = 1 - mean over pairs of max(cosine, 0)
      batch_mean  lambda   = 1 - mean over users and pairs of cosine

  Args:
    users: `[views, 2, batch, dim]`, see `adaptssr_loss`.
    fusion: 'adaptive', 'batch_mean', or a number in [0, 1], which is returned.
    where: Bool `[batch]`. False leaves a user out of the mean of 'batch_mean'.
    axis_name: The device axis over which 'batch_mean' is taken.

  Returns:
    `[batch]` for 'adaptive', else a scalar, without a gradient.

  Raises:
    ValueError: If `users` is not `[views, 2, batch, dim]`, or `fusion` is
      unknown.

  Example:
    >>> view = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> users = jnp.stack([jnp.stack([view, view]), jnp.stack([view, -view])])
    >>> augmentation_weight(users, fusion='adaptive')
    Array([0.5, 0.5], dtype=float32)

  Reference:
    Yu et al., AdaptSSR, NeurIPS 2023: 'adaptive' is the paper's coefficient,
    'batch_mean' is that of the authors' published code.
  """
  users = lax.stop_gradient(unit_users(users, where))
  if isinstance(fusion, str):
    if fusion == 'adaptive':
      pairs = [
        exact_dot('pbd,qbd->bpq', first, second)
        for first, second in itertools.combinations(users, 2)
      ]
      return 1 - jnp.mean(jnp.maximum(jnp.stack(pairs), 0), axis=(0, 2, 3))
    if fusion == 'batch_mean':
      means = jnp.mean(cosines(users[0, 0], join_passes(users[1:])), axis=-1)
      return 1 - reduce_losses(means, where, jnp.mean, axis_name)
  elif jnp.isscalar(fusion) and (
    # A traced number has no value yet to check. In NumPy, because jax.jit would
    # also trace the comparison of a constant.
    isinstance(fusion, jax.core.Tracer) or 0 <= np.asarray(fusion) <= 1
  ):
    return lax.stop_gradient(jnp.asarray(fusion, users.dtype))
  raise ValueError(
    "fusion must be 'adaptive', 'batch_mean' or a number in [0, 1], not "
    f'{fusion!r}.'
  )
