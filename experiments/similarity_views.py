"""The similarities of users with their own views, and with other users."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax import augment
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.users import encode_user, user_keys
from adaptssr_jax.reductions import gather
from adaptssr_jax.similarity import exact_dot, unit_length
from adaptssr_jax.train import AXIS


def similarity_step(
  params: dict[str, Any],
  batch: dict[str, jax.Array],
  *,
  encoder: UserEncoder,
  augmentations: tuple[augment.Augmentation, ...],
  key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`user_similarities` of the users of all devices, in their order."""
  of_user = functools.partial(
    user_similarities,
    augmentations=augmentations,
    encode=functools.partial(encode_user, params, encoder),
  )
  keys = user_keys(key, batch['example_id'])
  vectors, cosines = jax.vmap(of_user)(keys, batch['items'])
  return gather(vectors, AXIS), gather(cosines, AXIS)


def user_similarities(
  key: jax.Array,
  items: jax.Array,
  *,
  augmentations: tuple[augment.Augmentation, ...],
  encode: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """The vector of one user, and its similarities to the user's own views.

  Args:
    key: of this user.
    items: the behaviours, padded with 0, [length].
    augmentations: functions (key, items) -> items.
    encode: (key, items) -> vector [dim] under the dropout of the key.

  Returns:
    The vector [dim] of length 1, and the cosines [1 + augmentations]: with a
    second dropout pass, then with each augmentation.
  """
  view_key, dropout_key = jax.random.split(key)
  view_keys = jax.random.split(view_key, len(augmentations))
  views = [
    augmentation(view_key, items)
    for augmentation, view_key in zip(augmentations, view_keys, strict=True)
  ]
  sequences = jnp.stack([items, items, *views])
  dropout_keys = jax.random.split(dropout_key, len(sequences))
  vectors = unit_length(jax.vmap(encode)(dropout_keys, sequences))
  return vectors[0], exact_dot('d,vd->v', vectors[0], vectors[1:])


def with_other_users(vectors: np.ndarray, key: jax.Array) -> np.ndarray:
  """The cosine of each user with one other, at random.

  The users are put in a ring in a random order, and each is compared with the
  one before it: so every user is the other one exactly once.

  Args:
    vectors: [users, dim] of length 1, of two users or more.
    key: of the order.

  Returns:
    A cosine per user, [users].
  """
  order = np.asarray(jax.random.permutation(key, len(vectors)))
  partner = np.empty_like(order)
  partner[order] = np.roll(order, 1)
  return np.einsum('nd,nd->n', vectors, vectors[partner])
