"""One user at a time: what all objectives share."""

from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key

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
