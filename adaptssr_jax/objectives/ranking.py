"""Ranking of targets for users: BPR in training, all targets in evaluation.

A target is one of the outputs of the head. A row of `positives` are the targets
that are learned, or ranked, for a user, and a row of `targets` all that no
negative may be, these among them; -1 follows in both.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax import losses, metrics
from adaptssr_jax.buckets import AT_ONCE, Buckets
from adaptssr_jax.models import TaskHead, UserEncoder
from adaptssr_jax.objectives.users import (
  as_sums,
  encode_sequences,
  encode_users,
  user_keys,
)
from adaptssr_jax.reductions import reduce_losses


def ranking_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoder: UserEncoder,
  head: TaskHead,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> tuple[Float[Array, ''], dict[str, tuple[Array, Array]]]:
  """BPR of a batch: each positive above one fresh negative of its user.

  -log sigma(score(positive) - score(negative))

  A negative of its own is drawn for each positive, anew at every step,
  uniformly from all targets that are no positive of the user in any split, so
  that none is one to be found in the test. A user without any does not count.

  Args:
    params: `encoder` and `head`, the parameters of both.
    batch: `items` int32 [users, length], `positives` int32 [users, most],
      `targets` int32 [users, width], `where` bool [users], and `example_id`
      int32 [users], of this device.
    key: of this step.
    encoder: gives the user vectors, with dropout.
    head: has an output for each target.
    buckets: in which parts the users are encoded.
    axis_name: the axis of the devices that share the batch.

  Returns:
    The loss over the positives of all devices, and the metrics as
    (sum, count) over the positives of this device.

  Reference:
    Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback,
    UAI 2009.
  """
  draw = functools.partial(
    draw_negatives,
    num_draws=batch['positives'].shape[1],
    num_targets=head.num_outputs,
  )
  keys = jax.vmap(jax.random.split)(user_keys(key, batch['example_id']))
  users = encode_sequences(
    params['encoder'],
    encoder,
    batch['items'],
    keys=keys[:, 0],
    buckets=buckets,
  )
  positives = batch['positives']
  negatives = jax.vmap(draw)(keys[:, 1], batch['targets'])
  where = batch['where'][:, None] & (positives >= 0)
  where &= negatives < head.num_outputs

  pairs = jnp.concatenate([positives, negatives], axis=1)
  scores = jnp.split(target_scores(params['head'], users, pairs), 2, axis=1)
  pair_losses = losses.bpr_loss(*scores, where=where, reduce_fn=None)
  loss = reduce_losses(pair_losses, where, axis_name=axis_name)
  return loss, as_sums(loss, where)


def draw_negatives(
  key: Key[Array, ''],
  targets: Int[Array, 'width'],
  *,
  num_draws: int,
  num_targets: int,
) -> Int[Array, 'draws']:
  """Draws for each positive of a user; that of slot i is from key i folded in.

  Args:
    key: of this user at this step.
    targets: the user's positives, -1 where there is none, [width].
    num_draws: how many are wanted.
    num_targets: how many targets there are.

  Returns:
    Negatives as `draw_negative` gives them, independent of each other, [draws].
  """
  draw = functools.partial(draw_negative, num_targets=num_targets)
  fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  # Over the keys alone: a user's positives are sorted once for all draws.
  return jax.vmap(draw, in_axes=(0, None))(
    fold_in(key, jnp.arange(num_draws)), targets
  )


def draw_negative(
  key: Key[Array, ''], targets: Int[Array, 'width'], *, num_targets: int
) -> Int[Array, '']:
  """Draws a target that is no positive of the user, all with equal chance.

  With the positives s_0 < s_1 < ..., non-positive number r is
  r + |{j : s_j - j <= r}|, so that one draw of r is enough.

  Args:
    key: of this user at this step.
    targets: the user's positives, -1 where there is none, [width].
    num_targets: how many targets there are.

  Returns:
    The negative; `num_targets` if all targets are positives.

  Example:
    >>> key, targets = jax.random.key(0), jnp.array([3, 0, 1, -1])
    >>> draw_negative(key, targets, num_targets=5).item() in (2, 4)
    True
  """
  # What is no positive, or one again, sorts behind all targets.
  positives = jnp.sort(jnp.where(targets < 0, num_targets, targets))
  again = jnp.diff(positives, prepend=-1) == 0
  positives = jnp.sort(jnp.where(again, num_targets, positives))
  num_negatives = num_targets - jnp.sum(positives < num_targets)
  number = jax.random.randint(key, (), 0, jnp.maximum(num_negatives, 1))
  before = positives - jnp.arange(len(positives)) <= number
  before &= positives < num_targets
  return number + jnp.sum(before)


def target_scores(
  params: dict[str, Any],
  users: Float[Array, 'users features'],
  targets: Int[Array, 'users some'],
) -> Float[Array, 'users some']:
  """What `TaskHead` gives some targets of each user, and no more than these.

  Args:
    params: of the head.
    users: their vectors, [users, features].
    targets: whose scores are wanted, [users, some].

  Returns:
    The scores, [users, some].
  """
  output = params['output']
  # Where there is no target, any number will do, but not nan.
  columns = output['kernel'].at[:, targets].get(mode='clip')
  scores = jnp.einsum('uh,hus->us', _hidden(params, users), columns)
  return scores + output['bias'].at[targets].get(mode='clip')


def target_ranks(
  params: dict[str, Any],
  users: Float[Array, 'users features'],
  positives: Int[Array, 'users most'],
  targets: Int[Array, 'users width'],
  *,
  chunk_size: int = 4096,
) -> Float[Array, 'users most']:
  """The place of each positive among all targets that are none of its user.

  Goes through the targets in chunks, twice: memory is users x chunk_size.

  Args:
    params: of the head.
    users: their vectors, [users, features].
    positives: whose places are wanted, and -1, [users, most].
    targets: all positives of the user, and -1, [users, width].
    chunk_size: targets scored at once.

  Returns:
    Places from 1, see `metrics.rank`, of no meaning for -1, [users, most]; nan
    where the positive's own score is.
  """
  hidden = _hidden(params, users)
  kernel, bias = params['output']['kernel'], params['output']['bias']
  chunk_size = min(chunk_size, len(bias))
  score = functools.partial(
    _scores_of_chunk,
    hidden=hidden,
    kernel=kernel,
    bias=bias,
    chunk_size=chunk_size,
  )
  starts = jnp.arange(0, len(bias), chunk_size)
  # A zero of the users, so that under shard_map it varies as they do.
  nothing = jnp.zeros_like(positives, hidden.dtype)
  # From the product that ranks the others: another sums in another order, and
  # equal targets would be no ties.
  pick = functools.partial(_scores_met, score=score, positives=positives)
  relevant, _ = lax.scan(pick, nothing, starts)
  rank_in = functools.partial(
    _places_lost, score=score, relevant=relevant, targets=targets
  )
  lost, _ = lax.scan(rank_in, nothing, starts)
  return jnp.where(jnp.isnan(relevant), jnp.nan, 1 + lost)


def _scores_of_chunk(
  start: Int[Array, ''],
  *,
  hidden: Float[Array, 'users hidden'],
  kernel: Float[Array, 'hidden targets'],
  bias: Float[Array, 'targets'],
  chunk_size: int,
) -> tuple[Int[Array, ''], Float[Array, 'users chunk']]:
  """Where a chunk of targets begins, moved back to fit, and its scores."""
  begin = jnp.minimum(start, len(bias) - chunk_size)
  columns = lax.dynamic_slice_in_dim(kernel, begin, chunk_size, axis=1)
  # On its own, so that nothing that follows changes how it is summed.
  scores = lax.optimization_barrier(hidden @ columns)
  return begin, scores + lax.dynamic_slice_in_dim(bias, begin, chunk_size)[None]


def _scores_met(
  found: Float[Array, 'users most'],
  start: Int[Array, ''],
  *,
  score: Callable,
  positives: Int[Array, 'users most'],
) -> tuple[Float[Array, 'users most'], None]:
  """Puts in the scores of the positives that are in one chunk of targets."""
  begin, scores = score(start)
  place = positives - begin
  inside = (place >= 0) & (place < scores.shape[1])
  own = jnp.take_along_axis(scores, jnp.where(inside, place, 0), axis=1)
  return jnp.where(inside, own, found), None


def _places_lost(
  lost: Float[Array, 'users most'],
  start: Int[Array, ''],
  *,
  score: Callable,
  relevant: Float[Array, 'users most'],
  targets: Int[Array, 'users width'],
) -> tuple[Float[Array, 'users most'], None]:
  """Adds the places that the positives lose to one chunk of targets."""
  begin, scores = score(start)
  chunk_size = scores.shape[1]
  # What the last chunk, moved back to fit, repeats does not count.
  counts = jnp.arange(chunk_size) >= start - begin
  counts = jnp.broadcast_to(counts, scores.shape)
  # None of the user's positives: below 0 an index would wrap around.
  place = jnp.where(targets < begin, chunk_size, targets - begin)
  row = jnp.arange(len(place))[:, None]
  counts = counts.at[row, place].set(False, mode='drop')
  rank = functools.partial(metrics.rank, others=scores, where=counts)
  # One positive of each user after the other, to hold no table for each.
  return lost + lax.map(rank, relevant.T).T - 1, None


def ranks_of_positives(
  params: dict[str, Any],
  batch: dict[str, Array],
  *,
  encoder: UserEncoder,
  head: TaskHead,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> Float[Array, 'users most']:
  """The places of the positives of all devices' users, without dropout."""
  del head  # It has no more to say than its parameters.
  users = encode_users(params, batch, encoder=encoder, buckets=buckets)
  ranks = target_ranks(
    params['head'], users, batch['positives'], batch['targets']
  )
  if axis_name is None:
    return ranks
  return lax.all_gather(ranks, axis_name, tiled=True)


def _hidden(
  params: dict[str, Any], users: Float[Array, 'users features']
) -> Float[Array, 'users hidden']:
  hidden = params['hidden']
  return jax.nn.relu(users @ hidden['kernel'] + hidden['bias'][None])
