"""Augmentation-adaptive self-supervised ranking, the objective of AdaptSSR."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax import diagnostics, losses
from adaptssr_jax.buckets import AT_ONCE, Buckets
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.users import (
  as_sums,
  encode_sequences,
  user_keys,
)

Augmentation = Callable[[Array, Array], Array]
Augmentations = tuple[Augmentation, Augmentation]
# Users of a device whose similarities are told of; of all, they would cost more
# than the loss does.
_WATCHED = 256


def user_views(
  key: Key[Array, ''],
  items: Int[Array, 'length'],
  *,
  augmentations: Augmentations,
) -> tuple[Int[Array, '2 length'], Key[Array, '2 2']]:
  """Two augmented views of one user, and what each is to be dropped out by.

  Args:
    key: of this user at this step.
    items: the behaviours, padded with 0, [length].
    augmentations: of the first and of the second view, (key, items) -> items.

  Returns:
    The views [explicit view, length], and keys [explicit view, dropout pass].
  """
  view_key, dropout_key = jax.random.split(key)
  views = [
    augment(key, items)
    for augment, key in zip(
      augmentations, jax.random.split(view_key), strict=True
    )
  ]
  return jnp.stack(views), jax.random.split(dropout_key, (2, 2))


def adaptssr_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoder: UserEncoder,
  augmentations: Augmentations,
  fusion: str | float = 'adaptive',
  hard_negatives: bool = True,
  block_size: int | None = None,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> tuple[Float[Array, ''], dict[str, tuple[Array, Array]]]:
  """The AdaptSSR loss of a batch of behaviour sequences.

  A user's random draws depend on the key and on the user alone, not on who
  else is in the batch or on which device.

  Args:
    params: `encoder`, the parameters of the encoder.
    batch: `items` int32 [users, length], `where` bool [users], and
      `example_id` int32 [users], of this device.
    key: of this step.
    encoder: gives the user vectors.
    augmentations: of the first and of the second view of a user, each (key,
      items) -> items.
    fusion: lambda, see `adaptssr_loss`.
    hard_negatives: see `adaptssr_loss`.
    block_size: how many negatives are compared at a time, see `adaptssr_loss`.
    buckets: in which parts the 4 sequences of each user are encoded.
    axis_name: the axis of the devices that share the batch.

  Returns:
    The loss over the users of all devices, and as (sum, count) over the users
    of this device: `loss`, `lambda`, the fields of
    `diagnostics.ViewSimilarities`, and `alignment` of the explicit views, the
    mean |f - g|^2 = 2 - 2 cosine. These are of 256 users of a device at most.

  Reference:
    Yu et al., AdaptSSR, NeurIPS 2023.
  """
  draw = functools.partial(user_views, augmentations=augmentations)
  views, keys = jax.vmap(draw)(
    user_keys(key, batch['example_id']), batch['items']
  )
  # Each view twice, next to its second pass.
  users = encode_sequences(
    params['encoder'],
    encoder,
    jnp.repeat(views.reshape(-1, views.shape[-1]), 2, axis=0),
    keys=keys.reshape(-1),
    buckets=buckets,
  )
  users = jnp.moveaxis(users.reshape(-1, 2, 2, users.shape[-1]), 0, 2)

  where = batch['where']
  settings = {'fusion': fusion, 'axis_name': axis_name, 'where': where}
  loss = losses.adaptssr_loss(
    users, hard_negatives=hard_negatives, block_size=block_size, **settings
  )
  weight = losses.augmentation_weight(users, **settings)
  similarities = diagnostics.view_similarities(
    users, anchors=_WATCHED, where=where, axis_name=axis_name
  )._asdict()
  similarities['alignment'] = 2 - 2 * similarities['explicit']
  sums = as_sums(loss, where, {'lambda': weight})
  return loss, as_sums(loss, where[:_WATCHED], similarities) | sums
