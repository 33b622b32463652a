"""Augmentation-adaptive self-supervised ranking of views (AdaptSSR)."""

from typing import Any

from jaxtyping import Array

from adaptssr_jax import diagnostics, losses
from adaptssr_jax.objectives.contrast import MEASURED_USERS
from adaptssr_jax.objectives.users import LossAndMetrics, as_sums
from adaptssr_jax.objectives.views import Views


def rank_views(
  params: dict[str, Any],
  batch: dict[str, Array],
  views: Views,
  *,
  fusion: str | float = 'adaptive',
  axis_name: str | None = None,
  **settings: Any,
) -> LossAndMetrics:
  """The AdaptSSR loss of encoded views.

  Args:
    views: at least two views of each user, each with two dropout passes.
    fusion: lambda, see `adaptssr_loss`.
    **settings: other settings of `adaptssr_loss`.

  Returns:
    The loss over the users of all devices, and metrics as (sum, count) over the
    users of this device: `loss` and `lambda`; and over at most 256 of these
    users the fields of `diagnostics.ViewSimilarities`, and `alignment`, the
    mean squared distance |f - g|^2 = 2 - 2 cosine of explicit views f and g.

  Reference:
    Yu et al., AdaptSSR, NeurIPS 2023.
  """
  del params
  users, where = views.users, batch['where']
  shared = {'axis_name': axis_name, 'where': where}
  loss = losses.adaptssr_loss(users, fusion=fusion, **shared, **settings)
  weight = losses.augmentation_weight(users, fusion=fusion, **shared)
  similarities = diagnostics.view_similarities(
    users, anchors=MEASURED_USERS, **shared
  )._asdict()
  similarities['alignment'] = 2 - 2 * similarities['explicit']
  sums = as_sums(loss, where, {'lambda': weight})
  return loss, as_sums(loss, where[:MEASURED_USERS], similarities) | sums
