"""Mask and fill: masked behaviours are replaced by draws from a model."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax.objectives.contrast import curriculum_strength
from adaptssr_jax.objectives.masked_items import MaskedItems, encode_masked
from adaptssr_jax.objectives.users import Encoding, user_keys
from adaptssr_jax.objectives.views import Views
from adaptssr_jax.table.softmax import draw_items


def fill_masked(
  params: dict[str, Any],
  items: Int[Array, 'users length'],
  keys: Key[Array, ' users'],
  *,
  encoding: Encoding,
  ratio: float | Float[Array, ''],
  most: float | None = None,
  sampled: Int[Array, ' m'] | None = None,
) -> tuple[Int[Array, 'users length'], MaskedItems]:
  """Masks a share of each sequence, and replaces it by draws from the model.

  x'_t ~ softmax(E h_t + b) at the masked positions t;  x'_t = x_t elsewhere

  The model is that of the masked-items objective with the given parameters; in
  training these are the current ones, so that replacements become more
  plausible as it learns. A draw may return the masked item itself. No gradient
  flows through the draws.

  Args:
    params: `table`, `encoder`, and the `head` of
      `masked_items.init_masked_items`, which must have been trained on masked
      items, or be trained on them at the same time.
    keys: a key per user for this step.
    encoding: encodes the masked sequences.
    ratio: share of the behaviours that is replaced, see `mask_items`.
    most: see `mask_items`.
    sampled: ids to draw from, [m], needed if a step does not have all rows of
      the table; see `table.softmax.draw_items`.

  Returns:
    The sequences with replacements, [users, length], and the masked items.

  Raises:
    ValueError: If rows of the table are missing and no ids are sampled.

  Reference:
    Clark et al., ELECTRA, ICLR 2020, draws replacements in this way. Bian et
    al., Contrastive Curriculum Learning for Sequential User Behavior Modeling
    via Data Augmentation, CIKM 2021, makes views of users in this way, but
    conditioned on attributes of users, which are not available here.
  """
  masked = encode_masked(
    params, items, keys, encoding=encoding, ratio=ratio, most=most
  )
  # `encode_masked` uses the first two keys of a user.
  split = functools.partial(jax.random.split, num=masked.positions.shape[1])
  draw_keys = jax.vmap(split)(
    jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2)
  )
  drawn = draw_items(
    params['table'],
    params['head']['bias'],
    masked.states.reshape(-1, masked.states.shape[-1]),
    draw_keys.reshape(-1),
    sampled=sampled,
  ).reshape(masked.positions.shape)
  drawn = jnp.where(drawn > 0, drawn, masked.labels).astype(items.dtype)
  # Unused slots have a position beyond the end.
  put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode='drop'))
  return put(items, masked.positions, drawn), masked


def encode_filled(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  ratio: float,
  num_steps: int,
) -> Views:
  """Two views of users by `fill_masked`, with a growing share of masked items.

  The share is `ratio` times `curriculum_strength`. The model that fills has the
  parameters of this step; no gradient flows to them through the filled items.

  Args:
    batch: may have a `step`, see `curriculum_strength`.
    encoding: encodes the filled sequences; the model that fills has no dropout.
    ratio: the share that is masked at full strength.
    num_steps: number of updates over which the share grows.

  Reference:
    Bian et al., "Contrastive Curriculum Learning for Sequential User Behavior
    Modeling via Data Augmentation" (CCL), CIKM 2021, see `fill_masked`.
  """
  users, length = batch['items'].shape
  # Two views of a user, and two keys of each.
  keys = user_keys(key, batch['example_id'], num=4).reshape(users, 2, 2)
  strength = curriculum_strength(batch, num_steps)
  filled, _ = fill_masked(
    lax.stop_gradient(params),
    jnp.repeat(batch['items'], 2, axis=0),
    keys[..., 0].reshape(-1),
    encoding=dataclasses.replace(encoding, deterministic=True),
    ratio=ratio if strength is None else ratio * strength,
    most=ratio,
    sampled=batch.get('sampled'),
  )
  filled = filled.reshape(users, 2, length)
  vectors = encoding(params, filled, keys[..., 1])[:, :, None]
  return Views(jnp.moveaxis(filled, 0, 1), jnp.moveaxis(vectors, 0, 2))
