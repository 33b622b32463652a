"""The edits of CoSeRec: five operators, two of which insert similar items."""

import functools

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from adaptssr_jax import augment

# Sequences of at most this length are too short to crop or to reorder.
_SHORT = 4


def coserec_edits(
  *,
  similar: Int[ArrayLike, 'ids k'],
  mask_id: int,
  substitute_ratio: float = 0.1,
  insert_ratio: float = 0.4,
  crop_ratio: float = 0.2,
  mask_ratio: float = 0.7,
  reorder_ratio: float = 0.2,
) -> augment.Augmentation:
  """An augmentation that applies one of CoSeRec's five operators at random.

  All operators are equally likely: insert, substitute, mask, crop and reorder;
  only the first three for sequences of at most four behaviours.

  Args:
    similar: the similar items of each id, see `augment.substitute`.
    mask_id: the id that replaces a masked item. (The published code uses that
      of padding.)
    substitute_ratio: see `augment.substitute`. The defaults of this and the
      other ratios are the published ones.

  Returns:
    A function (key, items) -> items.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> similar = np.array([[0], [2], [1], [0]])
    >>> edit = coserec_edits(similar=similar, mask_id=3)
    >>> edit(jax.random.key(0), np.array([1, 2, 1, 2, 1, 2])).shape
    (6,)
  """
  bind = functools.partial
  edits = (
    bind(augment.insert, ratio=insert_ratio, similar=similar),
    bind(augment.substitute, ratio=substitute_ratio, similar=similar),
    bind(augment.mask, ratio=mask_ratio, mask_id=mask_id),
    bind(augment.crop, ratio=crop_ratio),
    bind(augment.reorder, ratio=reorder_ratio),
  )

  def count(items: Int[ArrayLike, ' length']) -> Int[Array, '']:
    is_short = jnp.sum(jnp.asarray(items) != 0) <= _SHORT
    return jnp.where(is_short, 3, len(edits))

  return augment.one_of(*edits, count=count)
