"""Masked items: predict masked behaviours from the others (BERT4Rec)."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import (
  Encoding,
  LossAndMetrics,
  mean_loss,
  user_keys,
)
from adaptssr_jax.table.softmax import label_losses


def mask_items(
  key: Key[Array, ''],
  items: Int[Array, 'length'],
  *,
  ratio: float | Float[Array, ''],
  mask_id: int,
  most: float | None = None,
) -> tuple[Int[Array, 'length'], Int[Array, 'masked'], Int[Array, 'masked']]:
  """Masks a share of one user's behaviours.

  Args:
    key: a random key.
    items: `[length]`, real ids first, 0 is padding.
    ratio: the share that is masked; see `augment.mask`.
    mask_id: the id that replaces a masked item.
    most: an upper bound of `ratio`, needed if `ratio` is an array.

  Returns:
    The masked sequence `[length]`; the masked positions `[masked]`, filled up
    with `length`; and the items at them `[masked]`, filled up with 0. `masked`
    is `ceil(most * length)`, or `ceil(ratio * length)` without `most`.
  """
  masked = augment.mask(key, items, ratio=ratio, mask_id=mask_id)
  # The same number of slots for all users, and far fewer than the length.
  (positions,) = jnp.nonzero(
    masked == mask_id,
    size=math.ceil((most or ratio) * len(items)),
    fill_value=len(items),
  )
  return masked, positions, items.at[positions].get(mode='fill', fill_value=0)


class MaskedItems(NamedTuple):
  """Masked behaviours of users, and the encoder's states at them.

  Args:
    positions: `[users, masked]`, the masked positions, filled up with `length`.
    labels: `[users, masked]`, the items at these positions, filled up with 0.
    states: `[users, masked, dim]`, the hidden states at these positions.
  """

  positions: Int[Array, 'users masked']
  labels: Int[Array, 'users masked']
  states: Float[Array, 'users masked dim']


def encode_masked(
  params: dict[str, Any],
  items: Int[Array, 'users length'],
  keys: Key[Array, ' users'],
  *,
  encoding: Encoding,
  ratio: float | Float[Array, ''],
  most: float | None = None,
) -> MaskedItems:
  """Masks behaviours of users, see `mask_items`, and encodes the sequences.

  Args:
    keys: a key per user for this step.
    ratio: see `mask_items`.
    most: see `mask_items`.
  """
  mask = functools.partial(
    mask_items, ratio=ratio, mask_id=encoding.encoder.mask_id, most=most
  )
  keys = jax.vmap(jax.random.split)(keys)
  masked, positions, labels = jax.vmap(mask)(keys[:, 0], items)
  states = encoding(params, masked, keys[:, 1], positions=positions)
  return MaskedItems(positions, labels, states)


def predict_masked(
  params: dict[str, Any],
  batch: dict[str, Array],
  masked: MaskedItems,
  *,
  axis_name: str | None = None,
) -> LossAndMetrics:
  """`masked_items_objective` of masked items that are encoded already."""
  labels, states = masked.labels, masked.states
  where = ((labels > 0) & batch['where'][:, None]).reshape(-1)
  labels = labels.reshape(-1)
  losses, best = label_losses(
    params['table'],
    params['head']['bias'],
    states.reshape(-1, states.shape[-1]),
    labels[:, None],
    where=where[:, None],
    sampled=batch.get('sampled'),
    axis_name=axis_name,
    skip_masked=True,
  )
  metrics = {} if best is None else {'accuracy': best == labels}
  return mean_loss(losses, where, metrics, axis_name=axis_name)


def masked_items_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  ratio: float = 0.3,
) -> LossAndMetrics:
  """Cross entropy of the masked items of a batch, over all items.

  -log softmax(E h_t + b)[x_t], mean over the masked positions t of all users

  E is the encoder's item table without the mask; padding is one of the classes,
  as in the reference.

  Args:
    params: with `head` of `init_masked_items`.
    ratio: the share of the behaviours that is masked.

  Returns:
    The loss, and the metrics `loss` and, if the softmax is exact, `accuracy`,
    over the masked positions.

  Reference:
    Sun et al., BERT4Rec, CIKM 2019 (https://arxiv.org/abs/1904.06690); here
    every masked item is replaced by the mask, as in the published code of
    AdaptSSR.
  """
  masked = encode_masked(
    params,
    batch['items'],
    user_keys(key, batch['example_id']),
    encoding=encoding,
    ratio=ratio,
  )
  return predict_masked(params, batch, masked, axis_name=encoding.axis_name)


def init_masked_items(encoder: UserEncoder) -> dict[str, Array]:
  """Initialises the parameters of the objective: a bias per id, zeros."""
  return {'bias': jnp.zeros(encoder.mask_id)}
