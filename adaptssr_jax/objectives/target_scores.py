"""Scores of targets for users, and ranks of targets among all of them.

In arrays of targets, -1 fills up the rows. In `log_sum_of_others` and
`target_ranks`, `targets` [users, width] are all positives of each user, which
are never negatives.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptssr_jax import metrics
from adaptssr_jax.encoder.model import TaskHead
from adaptssr_jax.encoder.transfer import TiedTargets
from adaptssr_jax.table.lookup import look_up


class TargetScores(NamedTuple):
  """The factors of the scores z = h K + b of all targets.

  Args:
    hidden: h, a vector per user, [users, hidden].
    kernel: K, a vector per target, [hidden, targets].
    bias: b, a bias per target, [targets].
  """

  hidden: Float[Array, 'users hidden']
  kernel: Float[Array, 'hidden targets']
  bias: Float[Array, ' targets']


def target_scores(
  params: dict[str, Any],
  users: Float[Array, 'users features'],
  head: TaskHead | TiedTargets,
) -> TargetScores:
  """The factors of the scores that a head gives to all targets.

  Args:
    params: of the model: `head`, and `table` for tied targets.
    head: a head with an output for each target, or one that ties targets to
      items.
  """
  if isinstance(head, TiedTargets):
    return TargetScores(
      users @ params['head']['projection'],
      head.rows(look_up(params['table'], head.items), params['head']).T,
      params['head']['bias'],
    )
  output = params['head']['output']
  if head.hidden_dim:
    hidden = params['head']['hidden']
    users = jax.nn.relu(users @ hidden['kernel'] + hidden['bias'][None])
  return TargetScores(users, output['kernel'], output['bias'])


def some_scores(
  scores: TargetScores, targets: Int[Array, 'users some']
) -> Float[Array, 'users some']:
  """The scores of some targets of each user, without computing the others.

  Args:
    targets: positives or negatives, [users, some].

  Returns:
    The scores, meaningless but finite where `targets` is -1.
  """
  # -1 reads any valid target: its score is not used, but must not be nan.
  columns = scores.kernel.at[:, targets].get(mode='clip')
  found = jnp.einsum('uh,hus->us', scores.hidden, columns)
  return found + scores.bias.at[targets].get(mode='clip')


def log_sum_of_others(
  scores: TargetScores,
  targets: Int[Array, 'users width'],
  *,
  chunk_size: int | None = None,
) -> Float[Array, ' users']:
  """The log of the sum over the negatives of a user, for a softmax.

  log sum_{t not in targets} exp(z_t)

  Args:
    chunk_size: number of targets scored at a time, and again for the gradient;
      None: all.

  Returns:
    A number per user; if all targets are positives, the least finite float.

  Example:
    >>> scores = TargetScores(jnp.ones((1, 1)), jnp.zeros((1, 4)), jnp.zeros(4))
    >>> found = log_sum_of_others(scores, jnp.array([[2, -1]]))
    >>> print(f'{found[0]:.4f} = log(3)')
    1.0986 = log(3)
  """
  chunk_size = min(chunk_size or len(scores.bias), len(scores.bias))

  def add_up(start: Int[Array, '']) -> Float[Array, ' users']:
    """The log of the sum over one chunk of targets."""
    begin, found = _scores_of_chunk(scores, start, chunk_size=chunk_size)
    is_negative = _is_negative(found.shape, begin, start, targets)
    # Not -inf: a row of -inf has a gradient of nan.
    least = jnp.finfo(found.dtype).min
    return jax.nn.logsumexp(jnp.where(is_negative, found, least), axis=1)

  starts = jnp.arange(0, len(scores.bias), chunk_size)
  # The gradient recomputes the scores of a chunk, so that none are stored.
  log_sums = lax.map(jax.checkpoint(add_up), starts)
  return jax.nn.logsumexp(log_sums, axis=0)


def target_ranks(
  scores: TargetScores,
  positives: Int[Array, 'users most'],
  targets: Int[Array, 'users width'],
  *,
  chunk_size: int = 4096,
) -> Float[Array, 'users most']:
  """The rank of each positive among all targets that are not the user's own.

  Targets are scored in chunks, twice; memory is `users * chunk_size` scores.

  Args:
    positives: the targets to rank.
    chunk_size: number of targets scored at a time.

  Returns:
    Ranks from 1, [users, most], see `metrics.rank`; meaningless where
    `positives` is -1, and nan where the score of the positive is nan.
  """
  chunk_size = min(chunk_size, len(scores.bias))
  score = functools.partial(_scores_of_chunk, scores, chunk_size=chunk_size)
  starts = jnp.arange(0, len(scores.bias), chunk_size)
  # Zeros made from an argument, so that they vary over devices under shard_map.
  zeros = jnp.zeros_like(positives, scores.hidden.dtype)

  def put_in_scores(
    found: Float[Array, 'users most'], start: Int[Array, '']
  ) -> tuple[Float[Array, 'users most'], None]:
    """Fills in the scores of the positives that are in this chunk."""
    begin, scores = score(start)
    index = positives - begin
    inside = (index >= 0) & (index < scores.shape[1])
    own = jnp.take_along_axis(scores, jnp.where(inside, index, 0), axis=1)
    return jnp.where(inside, own, found), None

  # Scores come from the same product as those of other targets: another product
  # sums in another order, and equal targets would not tie.
  relevant, _ = lax.scan(put_in_scores, zeros, starts)

  def add_ranks(
    lost: Float[Array, 'users most'], start: Int[Array, '']
  ) -> tuple[Float[Array, 'users most'], None]:
    """Adds the ranks by which this chunk of targets lowers each positive."""
    begin, scores = score(start)
    is_negative = _is_negative(scores.shape, begin, start, targets)
    rank = functools.partial(metrics.rank, others=scores, where=is_negative)
    # One positive of each user at a time, to limit memory.
    return lost + lax.map(rank, relevant.T).T - 1, None

  lost, _ = lax.scan(add_ranks, zeros, starts)
  return jnp.where(jnp.isnan(relevant), jnp.nan, 1 + lost)


def _scores_of_chunk(
  scores: TargetScores, start: Int[Array, ''], *, chunk_size: int
) -> tuple[Int[Array, ''], Float[Array, 'users chunk']]:
  """Where a chunk of targets begins, and its scores.

  The last chunk is moved back, so that all chunks have the same size.
  """
  hidden, kernel, bias = scores
  begin = jnp.minimum(start, len(bias) - chunk_size)
  columns = lax.dynamic_slice_in_dim(kernel, begin, chunk_size, axis=1)
  # The barrier keeps later operations from changing the order of the sums.
  found = lax.optimization_barrier(hidden @ columns)
  return begin, found + lax.dynamic_slice_in_dim(bias, begin, chunk_size)[None]


def _is_negative(
  shape: tuple[int, int],
  begin: Int[Array, ''],
  start: Int[Array, ''],
  targets: Int[Array, 'users width'],
) -> Array:
  """Which scores of a chunk belong to negatives of the user."""
  # Targets that the last chunk, which is moved back, repeats are left out.
  is_negative = jnp.broadcast_to(jnp.arange(shape[1]) >= start - begin, shape)
  # Negative indices would wrap around.
  index = jnp.where(targets < begin, shape[1], targets - begin)
  row = jnp.arange(len(index))[:, None]
  return is_negative.at[row, index].set(False, mode='drop')
