"""Next items: the user vector of a prefix predicts the items after it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from adaptssr_jax.objectives.pooled_items import predict_items
from adaptssr_jax.objectives.users import Encoding, LossAndMetrics, user_keys


def prefix_and_next(
  key: Key[Array, ''],
  items: Int[Array, 'length'],
  *,
  max_length: int,
  num_next: int,
) -> tuple[Int[Array, 'kept'], Int[Array, 'next']]:
  """Cuts a history at a random place; all places are equally likely.

  Args:
    items: the whole history, padded with 0, [length].
    max_length: number of last behaviours kept before the cut.
    num_next: number of first behaviours kept after the cut.

  Returns:
    The behaviours before the cut, `[min(length, max_length)]`, at least one
    unless the history is empty; and those after it, `[num_next]`, at least one
    if the history has two. Both are padded with 0.

  Example:
    >>> prefix, after = prefix_and_next(
    ...   jax.random.key(0), jnp.array([5, 6, 0]), max_length=2, num_next=2
    ... )
    >>> prefix.tolist(), after.tolist()
    ([5, 0], [6, 0])
  """
  n = jnp.sum(items != 0)
  cut = jnp.minimum(jax.random.randint(key, (), 1, jnp.maximum(n, 2)), n)
  start = jnp.maximum(cut - max_length, 0)
  index = jnp.arange(min(len(items), max_length))
  prefix = items.at[start + index].get(mode='fill', fill_value=0)
  prefix = jnp.where(index < cut - start, prefix, 0)
  after = items.at[cut + jnp.arange(num_next)].get(mode='fill', fill_value=0)
  return prefix, after


def next_items_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  num_next: int = 10,
) -> LossAndMetrics:
  """Negative log-likelihood of the items after a cut, given the prefix.

  - mean over x in items(cut + 1 .. cut + K) of log softmax(E u + b)[x]

  Args:
    params: see `predict_views`.
    num_next: K, the number of behaviours after the cut, predicted as a set.

  Reference:
    Wu et al., PTUM: Pre-training User Model from Unlabeled User Behaviors via
    Self-supervision, EMNLP Findings 2020, whose second task is to predict the
    next K behaviours.
  """
  keys = user_keys(key, batch['example_id'], num=2)
  cut = functools.partial(
    prefix_and_next, max_length=encoding.encoder.max_length, num_next=num_next
  )
  prefixes, after = jax.vmap(cut)(keys[:, 0], batch['items'])
  users = encoding(params, prefixes, keys[:, 1])
  return predict_items(
    params, batch, users, after, axis_name=encoding.axis_name
  )
