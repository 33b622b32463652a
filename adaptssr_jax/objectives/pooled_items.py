"""Pooled items: one slice of a user predicts the items of another."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.encoder.transfer import mean_projection
from adaptssr_jax.objectives.users import LossAndMetrics, mean_loss
from adaptssr_jax.objectives.views import Views
from adaptssr_jax.ops.sampled_softmax import distinct
from adaptssr_jax.table.softmax import label_losses, without_padding


def predict_views(
  params: dict[str, Any],
  batch: dict[str, Array],
  views: Views,
  *,
  axis_name: str | None = None,
) -> LossAndMetrics:
  """Each view predicts the items of the view that follows it.

  - mean over x in items(v + 1) of log softmax(E u_v + b)[x]

  with u_v the vector of view v, of every dropout pass, E the item table,
  `params['table']`, without padding and mask, and b a bias for each item. A
  vector that is wider than an item, as of several queries, is projected first,
  see `init_projection`. The items are a set: one that a view has twice counts
  once. The view after the last is the first.

  Args:
    params: `table`, and `head`, of `masked_items.init_masked_items` and
      `init_projection`.
    views: of each user.

  Returns:
    The mean over the views and passes of users, and `loss` of these.

  Reference:
    Liang et al., Mult-VAE, WWW 2018, has the likelihood; Wu et al., PTUM, EMNLP
    Findings 2020, predicts behaviours from the vector of a user.
  """
  labels = jnp.roll(views.items, -1, axis=0)[:, None]
  return predict_items(
    params,
    batch,
    views.users,
    jnp.broadcast_to(labels, (*views.users.shape[:-1], labels.shape[-1])),
    axis_name=axis_name,
  )


def predict_items(
  params: dict[str, Any],
  batch: dict[str, Array],
  users: Float[Array, '*views users dim'],
  items: Int[Array, '*views users k'],
  *,
  repeats: bool = False,
  axis_name: str | None = None,
) -> LossAndMetrics:
  """The multinomial likelihood of sets of items, given user vectors.

  Args:
    params: see `predict_views`.
    users: vectors, [..., users, dim].
    items: those to be predicted of each, padded with 0, [..., users, k]. A mask
      is no item.
    repeats: an item counts as often as it stands there, not once.

  Returns:
    The loss over all vectors that have items to predict, and `loss` of these.
  """
  head = params['head']
  # Of padding and all items there is a bias; the id after them is the mask.
  items = jnp.where(items == len(head['bias']), 0, items)
  items = items.reshape(-1, items.shape[-1])
  where = items != 0 if repeats else distinct(items)
  vectors = users.reshape(-1, users.shape[-1])
  if 'projection' in head:
    vectors = vectors @ head['projection']
  losses, _ = label_losses(
    params['table'],
    without_padding(head['bias']),
    vectors,
    items,
    where=where,
    sampled=batch.get('sampled'),
    axis_name=axis_name,
  )
  real = jnp.broadcast_to(batch['where'], users.shape[:-1]).reshape(-1)
  counts = real & where.any(axis=1)
  return mean_loss(losses, counts, axis_name=axis_name)


def init_projection(encoder: UserEncoder) -> dict[str, Array]:
  """Initialises the projection from user vectors to the width of an item.

  It starts as the mean of the parts of `embed_dim` features that make up a
  user vector. A user vector that is as wide as an item needs none.

  Args:
    encoder: gives vectors [vector_dim], a multiple of its `embed_dim`.

  Returns:
    Nothing, or `projection`, [vector_dim, embed_dim].

  Example:
    >>> encoder = UserEncoder(num_items=5, embed_dim=2, num_queries=3)
    >>> init_projection(encoder)['projection'].shape
    (6, 2)
  """
  if encoder.vector_dim == encoder.embed_dim:
    return {}
  return {'projection': mean_projection(encoder.vector_dim, encoder.embed_dim)}
