"""Augmentation-adaptive self-supervised ranking, the objective of AdaptSSR."""

import functools
from typing import Any

from jaxtyping import Array, Key

from adaptssr_jax import diagnostics, losses
from adaptssr_jax.objectives.users import as_sums
from adaptssr_jax.objectives.views import (
  LossAndMetrics,
  Views,
  encode_views,
  views_objective,
)

# Users of a device whose similarities are told of; of all, they would cost more
# than the loss does.
_WATCHED = 256


def adaptssr_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  fusion: str | float = 'adaptive',
  axis_name: str | None = None,
  form: str = 'pairs',
  hard_negatives: bool = True,
  temperature: float = 1.0,
  smooth: float = 0.0,
  block_size: int | None = None,
  **encoding: Any,
) -> LossAndMetrics:
  """The AdaptSSR loss of a batch of behaviour sequences.

  Args:
    params: `encoder`, the parameters of the encoder.
    batch: `items` int32 [users, length], `where` bool [users], and
      `example_id` int32 [users], of this device.
    key: of this step.
    fusion: lambda, see `adaptssr_loss`.
    axis_name: the axis of the devices that share the batch.
    form: see `adaptssr_loss`.
    hard_negatives: see `adaptssr_loss`.
    temperature: see `adaptssr_loss`.
    smooth: see `adaptssr_loss`.
    block_size: how many negatives are compared at a time, see `adaptssr_loss`.
    **encoding: `encoder`, `augmentations` and `buckets`, see `encode_views`.

  Returns:
    As `rank_views`.

  Reference:
    Yu et al., AdaptSSR, NeurIPS 2023.
  """
  rank = functools.partial(
    rank_views,
    fusion=fusion,
    axis_name=axis_name,
    form=form,
    hard_negatives=hard_negatives,
    temperature=temperature,
    smooth=smooth,
    block_size=block_size,
  )
  return views_objective(
    params,
    batch,
    key,
    losses={'adaptssr': rank},
    encode=functools.partial(encode_views, **encoding),
  )


def rank_views(
  params: dict[str, Any],
  batch: dict[str, Array],
  views: Views,
  *,
  fusion: str | float = 'adaptive',
  axis_name: str | None = None,
  **settings: Any,
) -> LossAndMetrics:
  """The AdaptSSR loss of views that are encoded already.

  Args:
    params: not needed.
    batch: `where` bool [users], of this device.
    views: at least two views of each user, each in two dropout passes.
    fusion: lambda, see `adaptssr_loss`.
    axis_name: the axis of the devices that share the batch.
    **settings: other settings of `adaptssr_loss`.

  Returns:
    The loss over the users of all devices, and as (sum, count) over the users
    of this device: `loss`, `lambda`, the fields of
    `diagnostics.ViewSimilarities`, and `alignment` of the explicit views, the
    mean |f - g|^2 = 2 - 2 cosine. These are of 256 users of a device at most.
  """
  del params
  users, where = views.users, batch['where']
  shared = {'axis_name': axis_name, 'where': where}
  loss = losses.adaptssr_loss(users, fusion=fusion, **shared, **settings)
  weight = losses.augmentation_weight(users, fusion=fusion, **shared)
  similarities = diagnostics.view_similarities(
    users, anchors=_WATCHED, **shared
  )._asdict()
  similarities['alignment'] = 2 - 2 * similarities['explicit']
  sums = as_sums(loss, where, {'lambda': weight})
  return loss, as_sums(loss, where[:_WATCHED], similarities) | sums
