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
) -> Float[Array, 'dim']:
  """One user's vector under the dropout mask of the key."""
  return encoder.apply(
    {'params': params},
    items[None],
    deterministic=False,
    rngs={'dropout': key},
  )[0]
