"""The vectors of other users, as negatives of anchors."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.ops.microbatches import map_chunks
from adaptssr_jax.ops.reductions import AxisName, gather, max_and_first
from adaptssr_jax.ops.similarity import exact_dot

Anchors = Float[Array, 'batch dim']
Ids = Int[Array, ' batch']


class Negatives(NamedTuple):
  """Vectors, and the users that they belong to.

  Args:
    vectors: `[n, dim]`, of length 1 if products are to be cosines.
    ids: `[n]`, the id of the user of each vector; 0 for padding.
  """

  vectors: Float[Array, 'n dim']
  ids: Int[Array, ' n']


def negatives_of(
  users: Float[Array, 'views passes batch dim'],
  where: Bool[ArrayLike, ' batch'] | None,
  axis_name: AxisName | None,
) -> tuple[Negatives, Ids]:
  """Gathers the vectors of all users of all devices as negatives.

  The users of all devices have the ids 1, 2, ... in order. Padding users, for
  which `where` is False, have the id 0, and are no negatives.

  Returns:
    The negatives, and the ids `[batch]` of the users of this device.
  """
  own = jnp.arange(users.shape[2], dtype=jnp.int32) + 1
  if axis_name is not None:
    own += lax.axis_index(axis_name) * len(own)
  users, where = gather(users, axis_name, axis=2), gather(where, axis_name)
  views, passes, num_users, dim = users.shape
  ids = jnp.arange(num_users, dtype=jnp.int32) + 1
  if where is not None:
    ids = jnp.where(jnp.asarray(where), ids, 0)
  ids = jnp.tile(ids, views * passes)
  return Negatives(users.reshape(len(ids), dim), ids), own


def is_other_user(own: Ids, ids: Int[Array, ' n']) -> Bool[Array, 'batch n']:
  """Whether ids of negatives belong to another user than each of `own`."""
  return (ids > 0)[None, :] & (ids[None, :] != own[:, None])


def negative_similarities(
  anchors: Anchors, own: Ids, negatives: Negatives
) -> Float[Array, 'batch n']:
  """Products of anchors with vectors of other users; -inf for their own user.

  Example:
    >>> negatives = Negatives(jnp.eye(2), jnp.array([1, 2]))
    >>> negative_similarities(jnp.eye(2), negatives.ids, negatives).tolist()
    [[-inf, 0.0], [0.0, -inf]]
  """
  products = exact_dot('bd,nd->bn', anchors, negatives.vectors)
  return jnp.where(is_other_user(own, negatives.ids), products, -jnp.inf)


def most_similar(
  anchors: Anchors,
  own: Ids,
  negatives: Negatives,
  *,
  count: int,
  size: int | None,
) -> tuple[Float[Array, 'batch count'], Int[Array, 'batch count']]:
  """The most similar negatives of each anchor, the most similar first.

  The search is exact and carries no gradient.

  Args:
    anchors: `[batch, dim]`.
    own: `[batch]`, the id of the user of each anchor.
    negatives: `n` of them.
    count: Number of negatives per anchor, at most `n`.
    size: Number of anchors that are compared with all negatives at a time;
      None compares all. Holds `[size, n]` similarities.

  Returns:
    `[batch, count]` similarities, -inf where an anchor has fewer negatives; and
    their indices among the `n`. Among equal negatives, the first come first.

  Example:
    >>> vectors = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    >>> negatives = Negatives(vectors, jnp.array([1, 2, 3]))
    >>> _, indices = most_similar(
    ...   vectors, negatives.ids, negatives, count=2, size=2
    ... )
    >>> indices.tolist()
    [[2, 1], [2, 0], [0, 1]]
  """
  negatives = lax.stop_gradient(negatives)

  def search(
    anchors: Anchors, own: Ids
  ) -> tuple[Float[Array, 'batch count'], Int[Array, 'batch count']]:
    similarities = negative_similarities(anchors, own, negatives)
    # Faster than a sort, but its index is exact up to 2^24 only.
    if count == 1 and len(negatives.ids) <= 2**24:
      best, first = max_and_first(similarities)
      return best[:, None], first[:, None]
    return tuple(lax.top_k(similarities, count))

  return map_chunks(search, lax.stop_gradient(anchors), own, size=size)
