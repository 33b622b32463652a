"""Losses that rank similarities: implicit, then explicit views, then negatives.

The module `losses` describes the arguments that all losses share.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from adaptssr_jax.ops.reductions import (
  ReduceFn,
  as_float,
  check_temperature,
  reduce_losses,
  zero_unless,
)
from adaptssr_jax.ops.similarity import smooth_max


def mpr_loss(
  implicit: Float[ArrayLike, '*anchors p'],
  explicit: Float[ArrayLike, '*anchors s'],
  negative: Float[ArrayLike, '*anchors n'],
  *,
  weight: Num[ArrayLike, '*#anchors'],
  where: Bool[ArrayLike, '*anchors'] | None = None,
  hard_negatives: bool = True,
  temperature: ArrayLike = 1.0,
  smooth: float = 0.0,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  r"""Multiple pairwise ranking: implicit above explicit above negative.

  For an anchor with similarities `p` to its implicit views, `e` to its explicit
  views and `n` to its negatives,

      -log sigma((w * (min p - max e) + (1 - w) * (min e - max n)) / t)

  or, without hard negatives, the mean over all triples of

      -log sigma((w * (p - e) + (1 - w) * (e - n)) / t).

  Args:
    implicit: `[..., P]`, similarities of each anchor to its implicit views.
    explicit: `[..., S]`, similarities to its explicit views.
    negative: `[..., N]`, similarities to other users. -inf marks a missing
      negative. For an anchor without negatives, only `w * (p - e)` remains.
    weight: `w`, the paper's lambda, a scalar or `[...]`.
    where: Bool `[...]`. False masks an anchor.
    hard_negatives: Use only the hardest pair of each anchor.
    temperature: `t`; 1 in the paper.
    smooth: `s`, a Python number, for hard pairs only. It replaces the maximum
      by `s log sum exp(x / s)`, and the minimum likewise, so that every
      similarity gets a gradient. 0, the limit, is the plain maximum, as in the
      paper.
    reduce_fn: Reduces the losses of anchors; None returns one per anchor.

  Returns:
    The reduced loss, a scalar, 0 if `where` masks every anchor; or with
    `reduce_fn=None` the losses `[...]`, 0 for masked anchors.

  Raises:
    ValueError: If `temperature` is not positive, `smooth` is negative, or
      `smooth` is set without `hard_negatives`.

  Example:
    >>> loss = mpr_loss(
    ...   jnp.array([[0.9]]), jnp.array([[0.5, 0.7]]), jnp.array([[0.1, 0.3]]),
    ...   weight=0.5,
    ... )
    >>> print(f'{loss:.4f} = -log sigma({0.5 * (0.9 - 0.7 + 0.5 - 0.3):.1f})')
    0.5981 = -log sigma(0.2)

  Reference:
    Yu et al., AdaptSSR, NeurIPS 2023: the loss over all quadruples, and its
    form with in-batch hard negatives.
  """
  check_temperature(temperature)
  if not smooth >= 0:
    raise ValueError(f'smooth must be at least 0, not {smooth}.')
  if smooth and not hard_negatives:
    raise ValueError('smooth needs hard_negatives: leave it at 0.')
  # A nan in a masked anchor must not reach the gradients as 0 * nan.
  implicit, explicit, negative = (
    zero_unless(where, as_float(x)) for x in (implicit, explicit, negative)
  )
  weight = jnp.broadcast_to(jnp.asarray(weight), implicit.shape[:-1])
  weight = zero_unless(where, weight)
  low = high = explicit
  if hard_negatives:
    implicit = -smooth_max(-implicit, smooth=smooth)
    low = -smooth_max(-explicit, smooth=smooth)
    high = smooth_max(explicit, smooth=smooth)
    negative = smooth_max(negative, smooth=smooth)
  losses = _mean_over_triples(
    *(x / temperature for x in (implicit, high, low, negative)), weight
  )
  return reduce_losses(losses, where, reduce_fn)


def listwise_ranking_loss(
  implicit: Float[ArrayLike, '*anchors p'],
  explicit: Float[ArrayLike, '*anchors s'],
  negative: Float[ArrayLike, '*anchors n'],
  *,
  weight: Num[ArrayLike, '*#anchors'],
  where: Bool[ArrayLike, '*anchors'] | None = None,
  temperature: ArrayLike = 1.0,
  reduce_fn: ReduceFn | None = jnp.mean,
) -> Float[Array, '...']:
  r"""The order of `mpr_loss` as a list: implicit, then explicit, then negative.

  For an anchor with similarities `p` to its implicit views, `e` to its explicit
  views and `n` to its negatives, all divided by the temperature,

      w * mean_p -log(exp p / (exp p + sum exp e + sum exp n))
        + (1 - w) * mean_e -log(exp e / (exp e + sum exp n))

  The two terms are the negative log-likelihoods of drawing the implicit view
  before all others, and an explicit view before all negatives.

  Arguments, returned values and errors are those of `mpr_loss`, without
  `hard_negatives` and `smooth`.

  Example:
    >>> loss = listwise_ranking_loss(
    ...   jnp.zeros((1, 1)), jnp.zeros((1, 2)), jnp.zeros((1, 3)), weight=0.5
    ... )
    >>> print(f'{loss:.4f} = 0.5 log(1 + 2 + 3) + 0.5 log(1 + 3)')
    1.5890 = 0.5 log(1 + 2 + 3) + 0.5 log(1 + 3)

  Reference:
    Plackett, "The Analysis of Permutations", 1975, and Xia et al., "Listwise
    Approach to Learning to Rank" (ListMLE), ICML 2008, for the likelihood of an
    order; Yu et al., AdaptSSR, NeurIPS 2023, for the order and its weight.
  """
  check_temperature(temperature)
  implicit, explicit, negative = (
    zero_unless(where, as_float(x)) / temperature
    for x in (implicit, explicit, negative)
  )
  others = smooth_max(negative, smooth=1.0)
  rest = jnp.logaddexp(jax.nn.logsumexp(explicit, -1, keepdims=True), others)
  # softplus(a - b) = -log(exp b / (exp a + exp b)).
  first = jnp.mean(jax.nn.softplus(rest - implicit), axis=-1)
  second = jnp.mean(jax.nn.softplus(others - explicit), axis=-1)
  losses = weight * first + (1 - weight) * second
  return reduce_losses(losses, where, reduce_fn)


def _mean_over_triples(
  implicit: Float[Array, '*anchors p'],
  high: Float[Array, '*anchors s'],
  low: Float[Array, '*anchors s'],
  negative: Float[Array, '*anchors n'],
  weight: Num[Array, '*anchors'],
) -> Float[Array, '*anchors']:
  """The mean over all triples that rank implicit > high and low > negative."""
  weight = weight[..., None, None, None]
  exists = (negative > -jnp.inf)[..., None, None, :]
  # The gradient of a difference with infinity would be nan.
  negative = jnp.where(exists, negative[..., None, None, :], 0)
  first = weight * (implicit[..., :, None, None] - high[..., None, :, None])
  second = (1 - weight) * (low[..., None, :, None] - negative)
  triples = jnp.where(exists, -jax.nn.log_sigmoid(first + second), 0)
  count = jnp.sum(exists, axis=-1)
  without = -jax.nn.log_sigmoid(first[..., 0])
  at_least_one = jnp.maximum(count, 1).astype(triples.dtype)
  with_negatives = jnp.sum(triples, axis=-1) / at_least_one
  pairs = jnp.where(count > 0, with_negatives, without)
  return jnp.mean(pairs, axis=(-2, -1))
