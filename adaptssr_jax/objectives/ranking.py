"""Ranking of targets for users: BPR or softmax losses, and ranks.

A target is an output of the head. In a batch, `positives` int32 [users, most]
holds the positives of each user in this split, and `targets` int32 [users,
width] all targets that are never negatives of the user, including `positives`.
Both are filled up with -1. Evaluation ranks each positive among all targets
that are not in `targets`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax import losses
from adaptssr_jax.encoder.model import TaskHead
from adaptssr_jax.encoder.transfer import TiedTargets
from adaptssr_jax.objectives.target_scores import (
  log_sum_of_others,
  some_scores,
  target_ranks,
  target_scores,
)
from adaptssr_jax.objectives.users import (
  Encoding,
  LossAndMetrics,
  mean_loss,
  user_keys,
)
from adaptssr_jax.ops.reductions import gather
from adaptssr_jax.table.softmax import chunk_size


def ranking_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  head: TaskHead | TiedTargets,
) -> LossAndMetrics:
  """BPR of a batch: each positive is ranked above one negative.

  -log sigma(score(positive) - score(negative))

  At every step one negative is drawn for each positive, uniformly from all
  targets that are not among the user's `targets`. A user whose `targets` are
  all targets is left out.

  Args:
    batch: also has `positives` and `targets`.
    head: a head with an output for each target, or one that ties targets to
      items.

  Returns:
    The loss, and the metric `loss`, over positives, not over users.

  Reference:
    Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback,
    UAI 2009.
  """
  draw = functools.partial(
    draw_negatives,
    num_draws=batch['positives'].shape[1],
    num_targets=head.num_outputs,
  )
  keys = user_keys(key, batch['example_id'], num=2)
  users = encoding(params, batch['items'], keys[:, 0])
  positives = batch['positives']
  negatives = jax.vmap(draw)(keys[:, 1], batch['targets'])
  where = batch['where'][:, None] & (positives >= 0)
  where &= negatives < head.num_outputs

  pairs = jnp.concatenate([positives, negatives], axis=1)
  scores = some_scores(target_scores(params, users, head), pairs)
  scores = jnp.split(scores, 2, axis=1)
  pair_losses = losses.bpr_loss(*scores, where=where, reduce_fn=None)
  return mean_loss(pair_losses, where, axis_name=encoding.axis_name)


def softmax_ranking_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  head: TaskHead | TiedTargets,
) -> LossAndMetrics:
  """Cross entropy of each positive against all negatives of its user.

  -log( exp(z_p) / (exp(z_p) + sum_n exp(z_n)) )

  where the negatives n are all targets that are not among the user's `targets`.
  A user without negatives is left out. For arguments and results see
  `ranking_objective`.

  Reference:
    Klenitskiy & Vasilev, Turning Dross Into Gold Loss: is BERT4Rec really
    better than SASRec?, RecSys 2023 (https://arxiv.org/abs/2309.07602).
  """
  keys = user_keys(key, batch['example_id'])
  users = encoding(params, batch['items'], keys)
  positives, targets = batch['positives'], batch['targets']
  scores = target_scores(params, users, head)
  others = log_sum_of_others(
    scores, targets, chunk_size=chunk_size(len(users), head.num_outputs)
  )
  where = batch['where'][:, None] & (positives >= 0)
  # The sum is the least number if all targets are positives.
  where &= (others > jnp.finfo(others.dtype).min)[:, None]
  # log(1 + exp(a - b)) is -log of the share of b among a and b.
  own = some_scores(scores, positives)
  positive_losses = jax.nn.softplus(others[:, None] - own)
  return mean_loss(positive_losses, where, axis_name=encoding.axis_name)


def draw_negatives(
  key: Key[Array, ''],
  targets: Int[Array, 'width'],
  *,
  num_draws: int,
  num_targets: int,
) -> Int[Array, 'draws']:
  """Draws negatives of a user: targets that are not positives, uniformly.

  With positives s_0 < s_1 < ..., the non-positive number r, counted from 0, is
  r + |{j : s_j - j <= r}|, so that one draw of r is enough. Negatives are drawn
  independently, number i with the key `fold_in(key, i)`.

  Args:
    targets: the positives of the user, filled up with -1, [width].

  Returns:
    The negatives, [draws]; `num_targets` if all targets are positives.

  Example:
    >>> key, targets = jax.random.key(0), jnp.array([3, 0, 1, -1])
    >>> found = draw_negatives(key, targets, num_draws=9, num_targets=5)
    >>> set(found.tolist())
    {2, 4}
  """
  # Fill values and repeated positives become `num_targets`, which sorts last.
  positives = jnp.sort(jnp.where(targets < 0, num_targets, targets))
  is_repeated = jnp.diff(positives, prepend=-1) == 0
  positives = jnp.sort(jnp.where(is_repeated, num_targets, positives))
  num_negatives = num_targets - jnp.sum(positives < num_targets)
  draw = functools.partial(
    jax.random.randint,
    shape=(),
    minval=0,
    maxval=jnp.maximum(num_negatives, 1),
  )
  fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  numbers = jax.vmap(draw)(fold_in(key, jnp.arange(num_draws)))
  before = (positives - jnp.arange(len(positives)))[None] <= numbers[:, None]
  before &= (positives < num_targets)[None]
  return numbers + jnp.sum(before, axis=1)


def ranks_of_positives(
  params: dict[str, Any],
  batch: dict[str, Array],
  *,
  encoding: Encoding,
  head: TaskHead | TiedTargets,
) -> Float[Array, 'users most']:
  """The ranks of the positives of the users of all devices, without dropout.

  Returns:
    `[users, most]`, ranks from 1; meaningless where `positives` is -1.
  """
  users = encoding(params, batch['items'])
  ranks = target_ranks(
    target_scores(params, users, head), batch['positives'], batch['targets']
  )
  return gather(ranks, encoding.axis_name)
