"""Augmentation-adaptive self-supervised ranking, the objective of AdaptSSR."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax import diagnostics, losses
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.users import as_sums, encode_user, user_keys

Augmentation = Callable[[Array, Array], Array]
Augmentations = tuple[Augmentation, Augmentation]


def user_views(
  key: Key[Array, ''],
  items: Int[Array, 'length'],
  *,
  augmentations: Augmentations,
  encode: Callable[[Array, Array], Array],
) -> Float[Array, '2 2 dim']:
  """Two augmented views of one user, each encoded under two dropout masks.

  Args:
    key: of this user at this step.
    items: the behaviours, padded with 0, [length].
    augmentations: of the first and of the second view, (key, items) -> items.
    encode: (key, items) -> user vector [dim] under the dropout of the key.

  Returns:
    Vectors [explicit view, dropout pass, dim], as `adaptssr_loss` wants them.
  """
  view_key, dropout_key = jax.random.split(key)
  keys = jax.random.split(view_key)
  views = jnp.stack(
    [
      augment(key, items)
      for augment, key in zip(augmentations, keys, strict=True)
    ]
  )
  passes = jax.vmap(encode, in_axes=(0, None))
  return jax.vmap(passes)(jax.random.split(dropout_key, (2, 2)), views)


def adaptssr_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoder: UserEncoder,
  augmentations: Augmentations,
  fusion: str | float = 'adaptive',
  hard_negatives: bool = True,
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
    axis_name: the axis of the devices that share the batch.

  Returns:
    The loss over the users of all devices, and as (sum, count) over the users
    of this device: `loss`, `lambda`, the fields of
    `diagnostics.ViewSimilarities`, and `alignment` of the explicit views, the
    mean |f - g|^2 = 2 - 2 cosine.

  Reference:
    Yu et al., AdaptSSR, NeurIPS 2023.
  """
  encode = functools.partial(encode_user, params['encoder'], encoder)
  views = functools.partial(
    user_views, augmentations=augmentations, encode=encode
  )
  keys = user_keys(key, batch['example_id'])
  users = jnp.moveaxis(jax.vmap(views)(keys, batch['items']), 0, 2)

  where = batch['where']
  settings = {'fusion': fusion, 'axis_name': axis_name, 'where': where}
  loss = losses.adaptssr_loss(users, hard_negatives=hard_negatives, **settings)
  weight = losses.augmentation_weight(users, **settings)
  similarities = diagnostics.view_similarities(
    users, where=where, axis_name=axis_name
  )._asdict()
  similarities['alignment'] = 2 - 2 * similarities['explicit']
  return loss, as_sums(loss, where, {'lambda': weight, **similarities})
