"""Pooled items: one slice of a user predicts the items of another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.encoder.tied_targets import mean_projection
from adaptssr_jax.objectives.masked_items import chunk_size
from adaptssr_jax.objectives.users import as_sums
from adaptssr_jax.objectives.views import (
  LossAndMetrics,
  Views,
  encode_views,
  views_objective,
)
from adaptssr_jax.ops.reductions import reduce_losses
from adaptssr_jax.ops.set_softmax import (
  distinct,
  sampled_set_softmax_losses,
  set_softmax_losses,
  shard_set_softmax_losses,
)
from adaptssr_jax.table.shards import fetch_from


def pooled_items_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  sampled_items: int = 0,
  axis_name: str | None = None,
  **encoding: Any,
) -> LossAndMetrics:
  """Likelihood of the items of a slice, given the user vector of another.

  Args:
    params: `encoder`, the parameters of the encoder, and `head`, of
      `masked_items.init_masked_items` and `init_projection`; where the table is
      split, also `table`, see `table_shards.on_rows`.
    batch: `items` int32 [users, length], the whole histories, `where` bool
      [users], and `example_id` int32 [users], of this device; where the table
      is split, also `ids`.
    key: of this step.
    sampled_items: estimate the softmax from so many sampled items; 0: exact.
    axis_name: the axis of the devices that share the batch.
    **encoding: `encoder`, `augmentations`, which draw the slices,
      `deterministic` and `buckets`, see `encode_views`.

  Returns:
    As `predict_views`.
  """
  predict = functools.partial(
    predict_views, sampled_items=sampled_items, axis_name=axis_name
  )
  return views_objective(
    params,
    batch,
    key,
    losses={'pooled_items': predict},
    encode=functools.partial(encode_views, passes=1, **encoding),
  )


def predict_views(
  params: dict[str, Any],
  batch: dict[str, Array],
  views: Views,
  key: Key[Array, ''],
  *,
  sampled_items: int = 0,
  axis_name: str | None = None,
) -> LossAndMetrics:
  """Each view predicts the items of the view that follows it.

  - mean over x in items(v + 1) of log softmax(E u_v + b)[x]

  with u_v the vector of view v, of every dropout pass, E the encoder's item
  table without padding and mask, and b a bias for each item. A vector that is
  wider than an item, as of several queries, is projected first, see
  `init_projection`. The items are a set: one that a view has twice counts once.
  The view after the last is the first.

  Args:
    params: see `pooled_items_objective`.
    batch: see `pooled_items_objective`.
    views: of each user.
    key: of this step.
    sampled_items: estimate the softmax from so many sampled items; 0: exact.
    axis_name: the axis of the devices that share the batch.

  Returns:
    The mean over the views and passes of the users of all devices, and `loss`
    as (sum, count) over those of this device.

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
    # The keys of users are folded in from 0 to 2^31 - 1.
    jax.random.fold_in(key, np.uint32(2**32 - 1)),
    sampled_items=sampled_items,
    axis_name=axis_name,
  )


def predict_items(
  params: dict[str, Any],
  batch: dict[str, Array],
  users: Float[Array, '*views users dim'],
  items: Int[Array, '*views users k'],
  key: Key[Array, ''],
  *,
  sampled_items: int,
  axis_name: str | None,
) -> LossAndMetrics:
  """The multinomial likelihood of sets of items, given user vectors.

  Args:
    params: see `pooled_items_objective`.
    batch: see `pooled_items_objective`.
    users: vectors, [..., users, dim].
    items: those to be predicted of each, padded with 0, [..., users, k]. A mask
      is no item.
    key: of the sampled items.
    sampled_items: see `pooled_items_objective`.
    axis_name: see `pooled_items_objective`.

  Returns:
    The loss over all vectors that have items to predict, on all devices, and
    `loss` as (sum, count) over those of this device.
  """
  table = params['encoder']['item_embedding']
  # The mask is the last row of the table, also of one that holds some rows.
  items = jnp.where(items == len(table) - 1, 0, items)
  items = items.reshape(-1, items.shape[-1])
  where = distinct(items)
  vectors = users.reshape(-1, users.shape[-1])
  if 'projection' in params['head']:
    vectors = vectors @ params['head']['projection']
  losses = _set_losses(
    key,
    params,
    vectors,
    batch['ids'][items] if 'ids' in batch else items,
    where,
    sampled_items=sampled_items,
    axis_name=axis_name,
  )
  real = jnp.broadcast_to(batch['where'], users.shape[:-1]).reshape(-1)
  counts = real & where.any(axis=1)
  loss = reduce_losses(losses, counts, axis_name=axis_name)
  return loss, as_sums(loss, counts)


def init_projection(encoder: UserEncoder) -> dict[str, Array]:
  """What brings a wide user vector to the width of an item, if it is wider.

  It starts as the mean of the parts, each of which is as wide as an item.

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


def _set_losses(
  key: Key[Array, ''],
  params: dict[str, Any],
  users: Float[Array, 'n dim'],
  labels: Int[Array, 'n k'],
  where: Bool[Array, 'n k'],
  *,
  sampled_items: int,
  axis_name: str | None,
) -> Float[Array, ' n']:
  """The loss of each vector, wherever the item table is."""
  bias, shard = params['head']['bias'], params.get('table')
  # Padding is no item.
  bias = bias.at[0].set(jnp.finfo(bias.dtype).min)
  table = params['encoder']['item_embedding'][: len(bias)]
  if sampled_items:
    rows = table if shard is None else fetch_from(shard, axis_name)
    return sampled_set_softmax_losses(
      key, users, rows, bias, labels, where=where, num_sampled=sampled_items
    )
  if shard is None:
    size = chunk_size(len(labels), len(bias))
    return set_softmax_losses(
      users, table, bias, labels, where=where, chunk_size=size
    )
  size = chunk_size(len(labels) * lax.axis_size(axis_name), len(shard))
  return shard_set_softmax_losses(
    users,
    shard,
    bias,
    labels,
    where=where,
    chunk_size=size,
    axis_name=axis_name,
  )
