"""CoSeRec: two views of a user by five operators, two of which know items."""

import functools
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from adaptssr_jax import augment
from adaptssr_jax.objectives.contrast import contrast_views
from adaptssr_jax.objectives.views import (
  LossAndMetrics,
  encode_views,
  views_objective,
)

# Sequences of at most so many behaviours are too short to cut or to shuffle.
_SHORT = 4


def coserec_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  temperature: float = 1.0,
  block_size: int | None = None,
  axis_name: str | None = None,
  **encoding: Any,
) -> LossAndMetrics:
  """NT-Xent between two views of each user, by the dot product.

  Published as an addition to predicting the next item, on the outputs of all
  positions side by side; here it is the whole loss, of user vectors. The second
  similarity of items there, by their embeddings after a warm-up, is left out.

  Args:
    batch: `items` int32 [users, length], `where` bool [users], and
      `example_id` int32 [users], of this device. Where the table is split or
      updated by rows, also `similar_items` int32 [users, length, k], the
      similar items of each behaviour, so that their rows are there.
    temperature: by which products are divided.
    block_size: users compared at a time, see `losses.nt_xent_loss`.
    **encoding: `encoder`, `augmentations`, as of `informed_edits`,
      `deterministic` and `buckets`, see `encode_views`.

  Returns:
    As `contrast_views`.

  Reference:
    Liu et al., "Contrastive Self-supervised Sequential Recommendation with
    Robust Augmentation" (CoSeRec), 2021.
  """
  contrast = functools.partial(
    contrast_views,
    temperature=temperature,
    similarity='dot',
    block_size=block_size,
    axis_name=axis_name,
  )
  return views_objective(
    params,
    batch,
    key,
    losses={'coserec': contrast},
    encode=functools.partial(encode_views, passes=1, **encoding),
  )


def informed_edits(
  *,
  similar: Int[ArrayLike, 'ids k'],
  mask_id: int,
  substitute_ratio: float = 0.1,
  insert_ratio: float = 0.4,
  crop_ratio: float = 0.2,
  mask_ratio: float = 0.7,
  reorder_ratio: float = 0.2,
) -> augment.Augmentation:
  """The five operators of CoSeRec, of which each view gets one.

  Of at most four behaviours one of insert, substitute and mask is drawn, of
  more also crop and reorder, each equally likely.

  Args:
    similar: the similar items of each id, see `augment.substitute`.
    mask_id: the id that stands for a masked item. (Published: padding.)
    substitute_ratio: see `augment.substitute`; the published one, as are the
      others.

  Returns:
    A function (key, items) -> items.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> similar = np.array([[0], [2], [1], [0]])
    >>> edit = informed_edits(similar=similar, mask_id=3)
    >>> edit(jax.random.key(0), np.array([1, 2, 1, 2, 1, 2])).shape
    (6,)
  """
  bind = functools.partial
  return augment.one_by_length(
    bind(augment.insert, ratio=insert_ratio, similar=similar),
    bind(augment.substitute, ratio=substitute_ratio, similar=similar),
    bind(augment.mask, ratio=mask_ratio, mask_id=mask_id),
    bind(augment.crop, ratio=crop_ratio),
    bind(augment.reorder, ratio=reorder_ratio),
    most=_SHORT,
    short=3,
  )
