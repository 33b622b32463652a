"""Losses: arrays in, a number out.

Every loss has the same last settings. `where` marks what counts, and what does
not count gets no gradient; `reduce_fn` is called as `reduce_fn(losses)` or
`reduce_fn(losses, where=where)`, and None leaves one loss per example.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from adaptssr_jax.negatives import (
  Negatives,
  hardest_similarity,
  mean_over_blocks,
  negative_similarities,
  negatives_of,
)
from adaptssr_jax.reductions import (
  AxisName,
  ReduceFn,
  as_float,
  reduce_losses,
  zero_unless,
)
from adaptssr_jax.similarity import cosines, exact_dot, unit_users


def mpr_loss(
  implicit: Float[ArrayLike, '*anchors p'],
  explicit: Float[ArrayLike, '*anchors s'],
  negative: Float[ArrayLike, '*anchors n'],
  *,
  weight: Num[ArrayLike, '*#anchors'],
  where: Bool[ArrayLike, '*anchors'] | None = None,
  hard_negatives: bool = True,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  r"""Multiple pairwise ranking: implicit above explicit above negative.

  For an anchor with similarities `p` to its implicit views, `e` to its explicit
  views and `n` to its negatives,

      -log sigma(w * (min p - max e) + (1 - w) * (min e - max n))

  or, without hard negatives, the mean over all triples of

      -log sigma(w * (p - e) + (1 - w) * (e - n)).

  Args:
    implicit: `[..., P]`, similarities of each anchor to its implicit views.
    explicit: `[..., S]`, to its explicit views.
    negative: `[..., N]`, to other users. -inf means "not there": it is left out
      in both modes. An anchor without any negative keeps `w * (p - e)` alone.
    weight: `w`, the lambda of the paper, a scalar or `[...]`.
    where: Bool `[...]`, the anchors that count.
    hard_negatives: Compare the hardest pairs only.
    reduce_fn: How anchors become a number, or None for a loss per anchor.

  Returns:
    The reduced loss, 0 if no anchor counts, or `[...]`, 0 where none counts.

  Example:
    >>> loss = mpr_loss(
    ...   jnp.array([[0.9]]), jnp.array([[0.5, 0.7]]), jnp.array([[0.1, 0.3]]),
    ...   weight=0.5,
    ... )
    >>> print(f'{loss:.4f} = -log sigma({0.5 * (0.9 - 0.7 + 0.5 - 0.3):.1f})')
    0.5981 = -log sigma(0.2)

  Reference:
    Yu et al., "AdaptSSR: Pre-training User Model with Augmentation-Adaptive
    Self-Supervised Ranking", NeurIPS 2023: the loss over all quadruples, and
    its in-batch hard negative form.
  """
  # Garbage in masked anchors must not reach the gradients as 0 * nan.
  implicit, explicit, negative = (
    zero_unless(where, as_float(x)) for x in (implicit, explicit, negative)
  )
  low = high = explicit
  if hard_negatives:
    implicit = jnp.min(implicit, axis=-1, keepdims=True)
    low = jnp.min(explicit, axis=-1, keepdims=True)
    high = jnp.max(explicit, axis=-1, keepdims=True)
    negative = jnp.max(negative, axis=-1, keepdims=True, initial=-jnp.inf)
  weight = jnp.broadcast_to(jnp.asarray(weight), implicit.shape[:-1])
  losses = _mean_over_triples(implicit, high, low, negative, weight)
  return reduce_losses(losses, where, reduce_fn)


def adaptssr_loss(
  users: Float[ArrayLike, '2 2 batch dim'],
  *,
  fusion: str | ArrayLike = 'adaptive',
  hard_negatives: bool = True,
  block_size: int | None = None,
  axis_name: AxisName | None = None,
  where: Bool[ArrayLike, ' batch'] | None = None,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  """Augmentation-adaptive self-supervised ranking of user vectors.

  The anchor of user `i` is the first pass of one explicit view, its implicit
  view is the second pass, its explicit views are both passes of the other view,
  and its negatives are the four vectors of every other user. Similarity is the
  cosine. The loss of a user is

      (mpr_loss(anchors of view 0) + mpr_loss(anchors of view 1)) / 2

  Args:
    users: `[2, 2, batch, dim]` = (explicit view, dropout pass, user, feature),
      of any scale.
    fusion: How `augmentation_weight` sets lambda: 'adaptive', 'batch_mean' or a
      number.
    hard_negatives: Compare the hardest pairs only.
    block_size: None compares anchors with all users at once, which takes
      `[batch, 4 * all]` numbers. Otherwise with so many at a time, also for the
      gradient: the same to rounding, in the memory of one block, and faster if
      hard. Of equally hard negatives the first gets the gradient.
    axis_name: The axis of `jax.pmap` or `jax.shard_map` over which users are
      split. Negatives and 'batch_mean' are then those of all its devices. The
      value is the same on each, and the gradient of a parameter, averaged over
      devices by `jax.lax.pmean`, is that of the whole batch on one device.
    where: Bool `[batch]`. False marks padding: neither anchor nor negative.
    reduce_fn: How users become a number, or None for a loss per (local) user.

  Returns:
    The reduced loss, 0 if no user counts, or `[batch]`, 0 where none counts.

  Raises:
    ValueError: If `users` is not `[2, 2, batch, dim]`, `fusion` is unknown, or
      `block_size` is below 1.

  Example:
    >>> users = jnp.broadcast_to(jnp.eye(2), (2, 2, 2, 2))
    >>> print(f'{adaptssr_loss(users):.4f} = -log sigma(0 * (1 - 1) + 1 - 0)')
    0.3133 = -log sigma(0 * (1 - 1) + 1 - 0)

  Reference:
    Yu et al., "AdaptSSR: Pre-training User Model with Augmentation-Adaptive
    Self-Supervised Ranking", NeurIPS 2023: the symmetric loss over a batch.
  """
  if block_size is not None and block_size < 1:
    raise ValueError(
      f'block_size must be at least 1 or None, not {block_size}.'
    )
  users = unit_users(users, where)
  negatives, own = negatives_of(users, where, axis_name)
  weight = functools.partial(
    augmentation_weight, fusion=fusion, where=where, axis_name=axis_name
  )
  half = functools.partial(
    _half_loss,
    own=own,
    negatives=negatives,
    hard_negatives=hard_negatives,
    block_size=block_size,
  )
  first, second = (half(views, weight(views)) for views in (users, users[::-1]))
  return reduce_losses((first + second) / 2, where, reduce_fn, axis_name)


def augmentation_weight(
  users: Float[ArrayLike, '2 2 batch dim'],
  *,
  fusion: str | ArrayLike,
  where: Bool[ArrayLike, ' batch'] | None = None,
  axis_name: AxisName | None = None,
) -> Float[Array, '...']:
  """Lambda: how far the explicit views of a user have drifted apart.

  'adaptive' is one lambda per user, over the four pairs of a pass of view 0 and
  a pass of view 1; 'batch_mean' is one number for the batch, over the two pairs
  of `users[0, 0]` and a pass of view 1:

      adaptive    lambda_i = 1 - mean over 4 pairs of max(cosine, 0)
      batch_mean  lambda   = 1 - mean over users and 2 pairs of cosine

  Args:
    users: `[2, 2, batch, dim]` = (explicit view, dropout pass, user, feature),
      of any scale.
    fusion: 'adaptive', 'batch_mean', or a number, which is returned.
    where: Bool `[batch]`, the users in 'batch_mean'.
    axis_name: The axis over whose devices 'batch_mean' is taken.

  Returns:
    `[batch]` for 'adaptive', else a scalar. It carries no gradient.

  Raises:
    ValueError: If `users` is not `[2, 2, batch, dim]`, or `fusion` is unknown.

  Example:
    >>> view = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> users = jnp.stack([jnp.stack([view, view]), jnp.stack([view, -view])])
    >>> augmentation_weight(users, fusion='adaptive')
    Array([0.5, 0.5], dtype=float32)

  Reference:
    Yu et al., "AdaptSSR: Pre-training User Model with Augmentation-Adaptive
    Self-Supervised Ranking", NeurIPS 2023: 'adaptive' is the paper's
    coefficient, 'batch_mean' that of the authors' published code.
  """
  users = lax.stop_gradient(unit_users(users, where))
  if isinstance(fusion, str):
    if fusion == 'adaptive':
      pairs = exact_dot('pbd,qbd->bpq', users[0], users[1])
      return 1 - jnp.mean(jnp.maximum(pairs, 0), axis=(1, 2))
    if fusion == 'batch_mean':
      means = jnp.mean(cosines(users[0, 0], users[1]), axis=-1)
      return 1 - reduce_losses(means, where, jnp.mean, axis_name)
  elif jnp.isscalar(fusion) and not _outside_unit(fusion):
    return lax.stop_gradient(jnp.asarray(fusion, users.dtype))
  raise ValueError(
    "fusion must be 'adaptive', 'batch_mean' or a number in [0, 1], not "
    f'{fusion!r}.'
  )


def _outside_unit(fusion: ArrayLike) -> bool:
  # Of a traced number nothing is known yet.
  return not isinstance(fusion, jax.core.Tracer) and not 0 <= fusion <= 1


def bpr_loss(
  positive: Float[ArrayLike, '*examples'],
  negative: Float[ArrayLike, '*examples'],
  *,
  where: Bool[ArrayLike, '*examples'] | None = None,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  """Bayesian personalised ranking: a positive above a negative.

      -log sigma(positive - negative)

  Args:
    positive: `[...]`, scores of items that the user chose.
    negative: `[...]`, scores of items that the user did not.
    where: Bool `[...]`, the pairs that count.
    reduce_fn: How pairs become a number, or None for a loss per pair.

  Returns:
    The reduced loss, 0 if no pair counts, or `[...]`, 0 where none counts.

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


def _mean_over_triples(
  implicit: Float[Array, '*anchors p'],
  high: Float[Array, '*anchors s'],
  low: Float[Array, '*anchors s'],
  negative: Float[Array, '*anchors n'],
  weight: Num[Array, '*anchors'],
) -> Float[Array, '*anchors']:
  """Ranks implicit above high, and low above negative, in all combinations."""
  weight = weight[..., None, None, None]
  exists = (negative > -jnp.inf)[..., None, None, :]
  # Infinity must not enter the difference, where its gradient would be nan.
  negative = jnp.where(exists, negative[..., None, None, :], 0)
  first = weight * (implicit[..., :, None, None] - high[..., None, :, None])
  second = (1 - weight) * (low[..., None, :, None] - negative)
  triples = jnp.where(exists, -jax.nn.log_sigmoid(first + second), 0)
  count = jnp.sum(exists, axis=-1)
  without = -jax.nn.log_sigmoid(first[..., 0])
  with_negatives = jnp.sum(triples, axis=-1) / jnp.maximum(count, 1)
  pairs = jnp.where(count > 0, with_negatives, without)
  return jnp.mean(pairs, axis=(-2, -1))


def _half_loss(
  views: Float[Array, '2 2 batch dim'],
  weight: Float[Array, '*#batch'],
  *,
  own: Int[Array, ' batch'],
  negatives: Negatives,
  hard_negatives: bool,
  block_size: int | None,
) -> Float[Array, ' batch']:
  """Ranks the views of `views[0, 0]`; all vectors have length 1."""
  anchors = views[0, 0]
  loss = functools.partial(
    mpr_loss,
    cosines(anchors, views[0, 1:]),
    cosines(anchors, views[1]),
    weight=weight,
    hard_negatives=hard_negatives,
    reduce_fn=None,
  )
  if block_size is None:
    return loss(negative_similarities(anchors, own, negatives))
  size = min(4 * block_size, len(negatives.ids))
  if hard_negatives:
    return loss(hardest_similarity(anchors, own, negatives, block_size=size))
  return mean_over_blocks(loss, anchors, own, negatives, block_size=size)
