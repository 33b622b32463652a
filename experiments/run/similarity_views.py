"""The similarities of users with their own views, and with other users."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import encode_sequences, user_keys
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.ops.reductions import gather
from adaptssr_jax.ops.similarity import exact_dot, unit_length
from adaptssr_jax.training.devices import AXIS


def similarity_step(
  params: dict[str, Any],
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  encoder: UserEncoder,
  augmentations: tuple[augment.Augmentation, ...],
  buckets: Buckets,
) -> tuple[jax.Array, jax.Array]:
  """The vectors of the users of all devices, and their similarities.

  Returns:
    The vectors [users, dim], of length 1; and of each the cosines [users, 1 +
    augmentations]: with a second dropout pass, then with each augmentation.
  """
  draw = functools.partial(views_of_user, augmentations=augmentations)
  views, keys = jax.vmap(draw)(
    user_keys(key, batch['example_id']), batch['items']
  )
  vectors = encode_sequences(
    params,
    encoder,
    views.reshape(-1, views.shape[-1]),
    keys=keys.reshape(-1),
    buckets=buckets,
  )
  vectors = unit_length(vectors.reshape(*keys.shape, -1))
  cosines = exact_dot('ud,uvd->uv', vectors[:, 0], vectors[:, 1:])
  return gather(vectors[:, 0], AXIS), gather(cosines, AXIS)


def views_of_user(
  key: jax.Array,
  items: jax.Array,
  *,
  augmentations: tuple[augment.Augmentation, ...],
) -> tuple[jax.Array, jax.Array]:
  """What one user is encoded as, and the keys of the dropout of each.

  Returns:
    The behaviours [length] twice, then augmented, [2 + augmentations, length];
    the keys.
  """
  view_key, dropout_key = jax.random.split(key)
  view_keys = jax.random.split(view_key, len(augmentations))
  views = [
    augmentation(view_key, items)
    for augmentation, view_key in zip(augmentations, view_keys, strict=True)
  ]
  sequences = jnp.stack([items, items, *views])
  return sequences, jax.random.split(dropout_key, len(sequences))


def with_other_users(vectors: np.ndarray, key: jax.Array) -> np.ndarray:
  """The cosine of each user with one other, at random, [users].

  The users are put in a ring in a random order, and each is compared with the
  one before it: so every user is the other one exactly once.

  Args:
    vectors: [users, dim] of length 1, of two users or more.
  """
  order = np.asarray(jax.random.permutation(key, len(vectors)))
  partner = np.empty_like(order)
  partner[order] = np.roll(order, 1)
  return np.einsum('nd,nd->n', vectors, vectors[partner])
