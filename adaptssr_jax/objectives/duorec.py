"""DuoRec: a contrast in which users with the same next item are positives."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from adaptssr_jax.objectives.contrast import contrast_views
from adaptssr_jax.objectives.users import (
  Encoding,
  LossAndMetrics,
  last_behaviours,
  user_keys,
)
from adaptssr_jax.objectives.views import Views


def duorec_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  temperature: float = 1.0,
  block_size: int | None = None,
) -> LossAndMetrics:
  """NT-Xent between a user and another who has the same last item.

  User and partner share the last item, the target; the sequences before it are
  encoded and contrasted by their dot product. The two encodings have different
  dropout masks, so that for a user without a partner the positive pair is two
  dropout passes of the same sequence.

  The paper adds this loss to next-item prediction, and takes every prefix of a
  sequence as a sequence. Here it is the only loss, on whole sequences.

  Args:
    batch: also has `partner_items` int32 [users, length]. The encoder reads the
      last behaviours before the target, of `items` and of `partner_items`.
    encoding: needs dropout, in validation too, or the positive pair of a user
      without a partner is the same vector twice.
    temperature: divides the similarities.
    block_size: number of users compared at a time, see `losses.nt_xent_loss`.

  Returns:
    See `contrast_views`; over the users with two or more behaviours.

  Reference:
    Qiu et al., "Contrastive Learning for Representation Degeneration Problem in
    Sequential Recommendation" (DuoRec), WSDM 2022.
  """
  sequences = jnp.stack(
    [
      before_last(batch[name], length=encoding.encoder.max_length)
      for name in ('items', 'partner_items')
    ],
    axis=1,
  )
  # Each user next to the partner.
  keys = user_keys(key, batch['example_id'], num=2)
  users = encoding(params, sequences, keys)
  where = batch['where'] & (sequences[:, 0] != 0).any(axis=1)
  # Two views of each user, with one dropout pass.
  views = Views(
    jnp.moveaxis(sequences, 0, 1), jnp.moveaxis(users[:, :, None], 0, 2)
  )
  return contrast_views(
    params,
    batch | {'where': where},
    views,
    temperature=temperature,
    similarity='dot',
    block_size=block_size,
    axis_name=encoding.axis_name,
  )


def before_last(
  items: Int[Array, 'users wide'], *, length: int
) -> Int[Array, 'users length']:
  """Returns the last `length` behaviours before each user's last behaviour.

  Example:
    >>> items = jnp.array([[4, 5, 6], [7, 8, 0], [9, 0, 0]])
    >>> before_last(items, length=1).tolist()
    [[5], [7], [0]]
  """
  count = jnp.sum(items != 0, axis=1, keepdims=True)
  is_before = jnp.arange(items.shape[1])[None] < count - 1
  return last_behaviours(jnp.where(is_before, items, 0), length=length)
