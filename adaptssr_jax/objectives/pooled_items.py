"""Pooled items: the vector of a slice predicts the items of another slice."""

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

  Here u_v is the vector of view v, in each dropout pass; E is the item table
  without padding and mask; and b is a bias per item. A user vector wider than
  an item embedding, as with several queries, is projected first, see
  `init_projection`. The items of a view are a set, without repetitions. The
  last view predicts the first.

  Args:
    params: `table`; and `head`, from `masked_items.init_masked_items` and
      `init_projection`.
    views: two or more views of each user.

  Returns:
    The mean over users, views and passes, and the metric `loss`.

  Reference:
    The likelihood is that of Liang et al., Mult-VAE, WWW 2018. Wu et al., PTUM,
    EMNLP Findings 2020, predict behaviours from a user vector.
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
  """The negative multinomial log-likelihood of items, given user vectors.

  Args:
    params: see `predict_views`.
    users: vectors, [..., users, dim].
    items: the items that each vector predicts, padded with 0, [..., users, k].
      The mask is ignored.
    repeats: True gives an item that occurs several times as many terms; False
      gives each distinct item one term.

  Returns:
    The mean over all vectors that have items to predict, and the metric `loss`.
  """
  head = params['head']
  # Padding and all items have a bias; the id after the last item is the mask.
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
  is_used = real & where.any(axis=1)
  return mean_loss(losses, is_used, axis_name=axis_name)


def init_projection(encoder: UserEncoder) -> dict[str, Array]:
  """Initialises the projection of user vectors to the width of an item.

  A user vector is a concatenation of parts of width `embed_dim`; the projection
  starts as their mean. A user vector as wide as an item needs no projection.

  Args:
    encoder: an encoder whose `vector_dim` is a multiple of its `embed_dim`.

  Returns:
    `projection`, [vector_dim, embed_dim]; nothing if the widths are equal.

  Example:
    >>> encoder = UserEncoder(num_items=5, embed_dim=2, num_queries=3)
    >>> init_projection(encoder)['projection'].shape
    (6, 2)
  """
  if encoder.vector_dim == encoder.embed_dim:
    return {}
  return {'projection': mean_projection(encoder.vector_dim, encoder.embed_dim)}
