"""Contrastive objectives: views of a user attract, those of other users repel.

CLUE, CL4SRec, IDICL, CCL and CoLES differ in how views are made and in the
loss. Each is a few settings of the functions here; the settings are in
`experiments/pretraining/contrastive.py`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adaptssr_jax import diagnostics, losses
from adaptssr_jax.objectives.users import LossAndMetrics, as_sums
from adaptssr_jax.objectives.views import Augmentations, Views, encode_views
from adaptssr_jax.ops.similarity import exact_dot, unit_length

# Number of users of a device whose similarities are measured; measuring all of
# them would take longer than the loss.
MEASURED_USERS = 256
# Number of strengths in a curriculum, as in the published code of CCL.
_LEVELS = 20


def contrast_views(
  params: dict[str, Any],
  batch: dict[str, Array],
  views: Views,
  *,
  loss: Callable[..., Float[Array, '']] = losses.nt_xent_loss,
  axis_name: str | None = None,
  **settings: Any,
) -> LossAndMetrics:
  """A contrastive loss of the vectors of views: `nt_xent_loss` or `coles_loss`.

  All views of a user, and all dropout passes of each, are positives of each
  other; those of other users of all devices are the negatives.

  Args:
    views: two or more vectors of each user, counting all views and passes.
    loss: (users [views, batch, dim], *, where, axis_name) -> scalar.
    **settings: other settings of the loss.

  Returns:
    The loss over the users of all devices, and metrics as (sum, count) over the
    users of this device: `loss`; and over at most 256 of these users the mean
    cosines `explicit` (views of the same user), `other` (other users) and
    `hardest` (the most similar other user), the share `explicit_over_other` of
    correctly ranked pairs, and `alignment` = 2 - 2 `explicit`.
  """
  del params
  users = views.users.reshape(-1, *views.users.shape[2:])
  shared = {'where': batch['where'], 'axis_name': axis_name}
  value = loss(users, **shared, **settings)
  # `view_similarities` expects two dropout passes; here they are the same one.
  twice = jnp.broadcast_to(users[:, None], (len(users), 2, *users.shape[1:]))
  found = diagnostics.view_similarities(twice, anchors=MEASURED_USERS, **shared)
  measured = as_sums(
    value,
    batch['where'][:MEASURED_USERS],
    {
      'explicit': found.explicit,
      'other': found.other,
      'hardest': found.hardest,
      'explicit_over_other': found.explicit_over_other,
      'alignment': 2 - 2 * found.explicit,
    },
  )
  return value, measured | as_sums(value, batch['where'])


def query_overlap(
  params: dict[str, Any], batch: dict[str, Array], views: Views
) -> LossAndMetrics:
  """A penalty of queries of the pooling that are not orthogonal.

  sqrt(sum over k != l of cos(q_k, q_l)^2)

  It lets each query pool a different interest of a user.

  Args:
    params: `encoder`, whose pooling has queries q, [queries, embed_dim].

  Returns:
    The norm, 0 for a single query, and `loss` as (sum, count) over the users of
    this device.

  Reference:
    The regulariser in the published code of AdaptSSR. We assume that IDICL has
    the same, see `make_idicl` of `experiments/pretraining/contrastive.py`.
  """
  del views
  queries = unit_length(params['encoder']['pooling']['query'])
  cosines = exact_dot('kd,ld->kl', queries, queries)
  overlap = jnp.square(cosines * (1 - jnp.eye(len(queries)))).sum()
  # The gradient of sqrt at 0 is infinite.
  is_positive = overlap > 0
  loss = jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, overlap, 1)), 0)
  return loss, as_sums(loss, batch['where'])


def curriculum_strength(
  batch: dict[str, Array], num_steps: int
) -> Float[Array, ''] | None:
  """The strength of augmentations at a step, from 0.05 to 1 in 20 levels.

  (floor(20 step / num_steps) + 1) / 20, at most 1

  Args:
    batch: `step` is the number of updates done so far. Batches of validation
      have no step; augmentations then have their full strength.
    num_steps: number of updates over which the strength grows.

  Returns:
    A factor in (0, 1]; None for a batch without a step.

  Example:
    >>> batches = [{'step': jnp.array(t)} for t in (0, 4, 5, 99, 1000)]
    >>> [f'{curriculum_strength(batch, 100):.2f}' for batch in batches]
    ['0.05', '0.05', '0.10', '1.00', '1.00']

  Reference:
    The published code of Bian et al., "Contrastive Curriculum Learning for
    Sequential User Behavior Modeling via Data Augmentation" (CCL), CIKM 2021,
    where the ratio is .015 (floor(epoch / 5) + 1), over 100 epochs.
  """
  if 'step' not in batch:
    return None
  # The steps at which the second and later levels begin.
  begins = [-(-level * num_steps // _LEVELS) for level in range(1, _LEVELS)]
  return (jnp.sum(batch['step'] >= jnp.array(begins)) + 1) / _LEVELS


def encode_curriculum(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  augmentations_at: Callable[[Float[Array, ''] | None], Augmentations],
  num_steps: int,
  **settings: Any,
) -> Views:
  """`encode_views` with augmentations that grow stronger during training.

  Args:
    batch: see `encode_views`; and `step`, see `curriculum_strength`.
    augmentations_at: strength -> the augmentations of each view; None means the
      full strength.
    num_steps: number of updates over which the strength grows.
    **settings: other settings of `encode_views`.
  """
  return encode_views(
    params,
    batch,
    key,
    augmentations=augmentations_at(curriculum_strength(batch, num_steps)),
    **settings,
  )
