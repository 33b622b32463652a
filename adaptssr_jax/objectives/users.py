"""One user at a time: what all objectives share."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from adaptssr_jax.models import UserEncoder


def user_keys(
  key: Key[Array, ''], example_id: Int[Array, 'users']
) -> Key[Array, 'users']:
  """A key per user, which depends on no other user and on no device."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_id)


def encode_user(
  params: dict[str, Any],
  encoder: UserEncoder,
  key: Key[Array, ''],
  items: Int[Array, 'length'],
  *,
  method: str = '__call__',
  deterministic: bool = False,
) -> Float[Array, '...']:
  """One user's vector [dim] under the dropout mask of the key.

  With method='hidden_states', the states of the user's items [length, dim].
  """
  return encoder.apply(
    {'params': params},
    items[None],
    deterministic=deterministic,
    rngs={'dropout': key},
    method=method,
  )[0]


def encode_users(
  params: dict[str, Any],
  batch: dict[str, Array],
  *,
  encoder: UserEncoder,
  axis_name: str | None = None,
) -> Float[Array, 'users dim']:
  """The vectors of the users of all devices, without dropout."""
  users = encoder.apply({'params': params['encoder']}, batch['items'])
  if axis_name is None:
    return users
  return jax.lax.all_gather(users, axis_name, tiled=True)


def as_sums(
  loss: Float[Array, ''],
  where: Bool[Array, '*examples'],
  values: Mapping[str, Array] | None = None,
) -> dict[str, tuple[Array, Array]]:
  """The metrics of a batch as (sum, count) over the examples of this device.

  Args:
    loss: over the examples of all devices: each device adds its share of it.
    where: which examples of this device count.
    values: more metrics, a value per example or one for all.
  """
  count = where.sum(dtype=jnp.float32)
  return {'loss': (loss * count, count)} | {
    name: ((value * where).sum(dtype=jnp.float32), count)
    for name, value in (values or {}).items()
  }
