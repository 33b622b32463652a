"""The vectors of other users: as negatives, all at once or block by block.

The functions here have the same arguments:

  anchors     `[batch, dim]`; all of length 1, the products are cosines
  own         `[batch]`, the ids of their users
  negatives   `n` of them
  block_size  how many of them are compared at a time
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.microbatches import in_chunks
from adaptssr_jax.ops.reductions import AxisName, max_and_first
from adaptssr_jax.ops.similarity import (
  all_users,
  exact_dot,
  is_another,
  smooth_max,
)

Anchors = Float[Array, 'batch dim']
Ids = Int[Array, ' batch']


class Negatives(NamedTuple):
  """Vectors, of length 1 for cosines, and whose they are.

  Args:
    vectors: `[n, dim]`.
    ids: `[n]`, of the user of each; 0 for a vector that is no negative.
  """

  vectors: Float[Array, 'n dim']
  ids: Int[Array, ' n']


def negatives_of(
  users: Float[Array, 'views passes batch dim'],
  where: Bool[ArrayLike, ' batch'] | None,
  axis_name: AxisName | None,
) -> tuple[Negatives, Ids]:
  """Gathers the vectors of all users of all devices as negatives.

  Args:
    users: `[views, passes, batch, dim]`, of length 1 for cosines.
    where: Bool `[batch]`, the users that count.
    axis_name: The axis over whose devices users are split.

  Returns:
    `Negatives` of all devices, and `[batch]` ids from 1 up.
  """
  vectors, ids, own = all_users(users, where, axis_name)
  vectors = vectors.reshape(-1, vectors.shape[-1])
  return Negatives(vectors, jnp.tile(ids, users.shape[0] * users.shape[1])), own


def negative_similarities(
  anchors: Anchors, own: Ids, negatives: Negatives
) -> Float[Array, 'batch n']:
  """Products of anchors with the vectors of others, -inf with their own.

  Example:
    >>> negatives = Negatives(jnp.eye(2), jnp.array([1, 2]))
    >>> negative_similarities(jnp.eye(2), negatives.ids, negatives).tolist()
    [[-inf, 0.0], [0.0, -inf]]
  """
  products = exact_dot('bd,nd->bn', anchors, negatives.vectors)
  return jnp.where(is_another(own, negatives.ids), products, -jnp.inf)


def hardest_similarity(
  anchors: Anchors, own: Ids, negatives: Negatives, *, block_size: int
) -> Float[Array, 'batch 1']:
  """Cosines of anchors to the nearest vector of another user.

  Searches without a gradient, `[batch, block_size]` cosines at a time; then one
  product for each anchor is all that is differentiated. So, of equally near
  vectors, the first gets the gradient, where `jnp.max` divides it.

  Returns:
    `[batch, 1]`, -inf for an anchor without any negative.

  Example:
    >>> vectors = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    >>> negatives = Negatives(vectors, jnp.array([2, 1, 3]))
    >>> anchors, own = jnp.array([[1.0, 0.0]]), jnp.array([1])
    >>> nearest = hardest_similarity(anchors, own, negatives, block_size=2)
    >>> print(f'{nearest[0, 0]:.1f}: not that to its own user, 1')
    0.6: not that to its own user, 1
  """
  fixed = lax.stop_gradient(anchors)
  blocks = lax.stop_gradient(in_chunks(negatives, size=block_size))
  best, first = lax.map(functools.partial(_best, fixed, own), blocks)
  block = jnp.argmax(best, axis=0)[None]
  index = (block * block_size + jnp.take_along_axis(first, block, axis=0))[0]
  nearest = exact_dot('bd,bd->b', anchors, negatives.vectors[index])
  has_none = jnp.max(best, axis=0) == -jnp.inf
  return jnp.where(has_none, -jnp.inf, nearest)[:, None]


def most_similar(
  anchors: Anchors,
  own: Ids,
  negatives: Negatives,
  *,
  count: int,
  block_size: int,
) -> tuple[Float[Array, 'batch count'], Int[Array, 'batch count']]:
  """The most similar negatives of each anchor, the most similar first.

  Searches `[batch, block_size]` cosines at a time, exactly.

  Args:
    count: How many are looked for, at most `block_size`.

  Returns:
    `[batch, count]` similarities, -inf where there are no more; and the indices
    of these negatives among the `n`. Of equal ones the first count.

  Example:
    >>> vectors = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    >>> negatives = Negatives(vectors, jnp.array([1, 2, 3]))
    >>> _, indices = most_similar(
    ...   vectors, negatives.ids, negatives, count=2, block_size=2
    ... )
    >>> indices.tolist()
    [[2, 1], [2, 0], [0, 1]]
  """
  blocks = in_chunks(negatives, size=block_size)
  begins = jnp.arange(len(blocks.ids)) * block_size
  nothing = jnp.full((len(anchors), count), -jnp.inf, anchors.dtype)
  best = nothing, jnp.zeros(nothing.shape, begins.dtype)

  def keep_best(
    best: tuple[Float[Array, 'batch count'], Int[Array, 'batch count']],
    block: tuple[Int[Array, ''], Negatives],
  ) -> tuple[
    tuple[Float[Array, 'batch count'], Int[Array, 'batch count']], None
  ]:
    """The best so far, and those of one more block."""
    begin, some = block
    found = lax.top_k(negative_similarities(anchors, own, some), count)
    # What comes first wins where several are equal.
    similarities = jnp.concatenate([best[0], found[0]], axis=1)
    indices = jnp.concatenate([best[1], begin + found[1]], axis=1)
    similarities, chosen = lax.top_k(similarities, count)
    return (similarities, jnp.take_along_axis(indices, chosen, axis=1)), None

  best, _ = lax.scan(keep_best, best, (begins, blocks))
  return best


def smooth_hardest_similarity(
  anchors: Anchors,
  own: Ids,
  negatives: Negatives,
  *,
  smooth: ArrayLike,
  block_size: int,
) -> Float[Array, 'batch 1']:
  """The smooth maximum of the products of anchors with other users.

      s log sum_n exp(product_n / s)

  The gradient recomputes each block, so that one of them is held at a time.

  Args:
    smooth: s, see `smooth_max`.

  Returns:
    `[batch, 1]`, -inf for an anchor without any negative.

  Example:
    >>> negatives = Negatives(jnp.eye(2), jnp.array([1, 2]))
    >>> anchors, own = jnp.array([[1.0, 0.0]]), jnp.array([3])
    >>> hardest = smooth_hardest_similarity(
    ...   anchors, own, negatives, smooth=1.0, block_size=1
    ... )
    >>> print(f'{hardest[0, 0]:.4f} = log(e + 1)')
    1.3133 = log(e + 1)
  """

  def block_max(some: Negatives) -> Float[Array, ' batch']:
    """Of each anchor, over the negatives of one block."""
    found = negative_similarities(anchors, own, some)
    return smooth_max(found, smooth=smooth)[:, 0]

  # The loop already keeps the compiler from merging the two passes.
  found = lax.map(
    jax.checkpoint(block_max, prevent_cse=False),
    in_chunks(negatives, size=block_size),
  )
  return smooth_max(found.T, smooth=smooth)


def mean_over_blocks(
  loss: Callable[[Float[Array, 'batch n']], Float[Array, ' batch']],
  anchors: Anchors,
  own: Ids,
  negatives: Negatives,
  *,
  block_size: int,
) -> Float[Array, ' batch']:
  """A loss that is a mean over negatives, `[batch, block_size]` at a time.

      sum_b n_b loss(negatives of block b) / sum_b n_b

  with n_b negatives in block b. The gradient recomputes each block, so that one
  of them is held at a time.

  Args:
    loss: (similarities `[batch, n]`) -> `[batch]`, for any n.

  Returns:
    `[batch]`; for an anchor without any negative, its loss without them.

  Example:
    >>> vectors = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> negatives = Negatives(vectors, jnp.array([1, 2, 3]))
    >>> mean = functools.partial(jnp.mean, axis=1)
    >>> anchors, own = jnp.array([[1.0, 0.0]]), jnp.array([4])
    >>> found = mean_over_blocks(mean, anchors, own, negatives, block_size=1)
    >>> print(f'{found[0]:.4f} = (1 + 0.6 + 0) / 3')
    0.5333 = (1 + 0.6 + 0) / 3
  """
  if block_size >= len(negatives.ids):
    return loss(negative_similarities(anchors, own, negatives))

  def block_loss(
    some: Negatives,
  ) -> tuple[Float[Array, ' batch'], Float[Array, ' batch']]:
    """The loss of each anchor in one block, and how many negatives it has."""
    found = negative_similarities(anchors, own, some)
    losses = loss(found)
    return losses, jnp.sum(found > -jnp.inf, axis=1, dtype=losses.dtype)

  losses, counts = lax.map(
    jax.checkpoint(block_loss, prevent_cse=False),
    in_chunks(negatives, size=block_size),
  )
  total = jnp.sum(counts, axis=0, keepdims=True)
  # Without any, all blocks are alike: take any one, or their mean.
  shares = jnp.where(total > 0, counts / jnp.maximum(total, 1), 1 / len(counts))
  return jnp.sum(losses * shares, axis=0)


def _best(
  anchors: Anchors, own: Ids, negatives: Negatives
) -> tuple[Float[Array, ' batch'], Ids]:
  """The largest similarity of each anchor, and the first index of it."""
  found = negative_similarities(anchors, own, negatives)
  best, first = max_and_first(found)
  return best, first.astype(own.dtype)
