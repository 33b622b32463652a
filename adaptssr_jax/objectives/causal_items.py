"""Causal items: predict each behaviour from those before it (SASRec)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from adaptssr_jax.objectives.masked_items import MaskedItems, predict_masked
from adaptssr_jax.objectives.users import Encoding, LossAndMetrics, user_keys


def next_items(
  items: Int[Array, 'users length'], *, last_only: bool = False
) -> tuple[Int[Array, 'users positions'], Int[Array, 'users positions']]:
  """Returns positions, and the next item of each as the label.

  Args:
    items: `[users, length]`, padded with 0 at the end.
    last_only: return only the last item of each user as a label.

  Returns:
    Positions `[users, positions]` and labels of the same shape, 0 where there
    is no next item. `positions` is 1 with `last_only`, else `length - 1`.

  Example:
    >>> items = jnp.array([[5, 6, 7], [8, 0, 0]])
    >>> positions, labels = next_items(items)
    >>> positions.tolist(), labels.tolist()
    ([[0, 1], [0, 1]], [[6, 7], [0, 0]])
    >>> positions, labels = next_items(items, last_only=True)
    >>> positions.tolist(), labels.tolist()
    ([[1], [0]], [[7], [0]])
  """
  users, length = items.shape
  positions = jnp.broadcast_to(jnp.arange(length - 1), (users, length - 1))
  if last_only:
    count = jnp.sum(items != 0, axis=1, keepdims=True, dtype=positions.dtype)
    positions = jnp.maximum(count - 2, 0)
  return positions, jnp.take_along_axis(items, positions + 1, axis=1)


def causal_items_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  last_only: bool = False,
) -> LossAndMetrics:
  """Cross entropy of each next item of a batch, over all items.

  -log softmax(E h_t + b)[x_{t+1}], mean over the positions t of all users that
  have a next item

  E is the encoder's item table without the mask; padding is one of the classes,
  as in `masked_items_objective`. The encoder sees all items except the last, so
  that a user with max_length + 1 items trains all positions.

  Args:
    batch: `items` have 2 <= length <= max_length + 1.
    encoding: its encoder must be causal, or each state would see the item that
      it has to predict.
    last_only: predict only the last item of each user, as in evaluation.

  Returns:
    See `masked_items_objective`; over these positions.

  Raises:
    ValueError: If the encoder is not causal.

  Reference:
    Kang & McAuley, Self-Attentive Sequential Recommendation, ICDM 2018
    (https://arxiv.org/abs/1808.09781); the loss over all items as in Klenitskiy
    & Vasilev, Turning Dross Into Gold Loss, RecSys 2023
    (https://arxiv.org/abs/2309.07602).
  """
  if not encoding.encoder.causal:
    raise ValueError('causal items need an encoder with causal=True.')
  items = batch['items']
  positions, labels = next_items(items, last_only=last_only)
  keys = user_keys(key, batch['example_id'])
  states = encoding(params, items[:, :-1], keys, positions=positions)
  targets = MaskedItems(positions, labels, states)
  return predict_masked(params, batch, targets, axis_name=encoding.axis_name)
