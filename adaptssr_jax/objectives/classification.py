"""Classification of users, and prediction of a rare event (conversion)."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.objectives.users import (
  LossAndMetrics,
  as_sums,
  encode_sequences,
  encode_users,
  user_keys,
)
from adaptssr_jax.ops.buckets import AT_ONCE, Buckets
from adaptssr_jax.ops.reductions import reduce_losses


def classification_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoder: UserEncoder,
  head: TaskHead,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> LossAndMetrics:
  """Cross entropy of the classes of a batch of users.

  Args:
    batch: has `label` int32 [users] too.
    head: gives the logits of the classes.
  """
  logits = user_logits(
    params, batch, key, encoder=encoder, head=head, buckets=buckets
  )
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['label']
  )
  where = batch['where']
  loss = reduce_losses(losses, where, axis_name=axis_name)
  return loss, as_sums(loss, where)


def user_logits(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoder: UserEncoder,
  head: TaskHead,
  buckets: Buckets = AT_ONCE,
) -> Float[Array, 'users outputs']:
  """The head's outputs for the users of this device, with dropout."""
  users = encode_sequences(
    params,
    encoder,
    batch['items'],
    keys=user_keys(key, batch['example_id']),
    buckets=buckets,
  )
  return head.apply({'params': params['head']}, users)


def class_logits(
  params: dict[str, Any],
  batch: dict[str, Array],
  *,
  encoder: UserEncoder,
  head: TaskHead,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> Float[Array, 'users classes']:
  """The logits of the users of all devices, without dropout."""
  users = encode_users(
    params, batch, encoder=encoder, buckets=buckets, axis_name=axis_name
  )
  return head.apply({'params': params['head']}, users)


def conversion_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoder: UserEncoder,
  head: TaskHead,
  positive_weight: float = 1.0,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> LossAndMetrics:
  """Binary cross entropy of a batch of users.

  mean over users of w^y * (-y log p - (1 - y) log(1 - p)),  p = sigma(score)

  With w = 1 a score is the log-odds of the event. Another weight shifts scores
  by log w: the order of users stays, but the probabilities are no longer
  calibrated.

  Args:
    batch: also has `label` int32 [users], 1 where the event happened.
    head: has one output, the score.
    positive_weight: w, the weight of users with the event.
  """
  scores = user_logits(
    params, batch, key, encoder=encoder, head=head, buckets=buckets
  )[:, 0]
  label, where = batch['label'], batch['where']
  losses = optax.sigmoid_binary_cross_entropy(scores, label)
  losses = losses * jnp.where(label != 0, positive_weight, 1.0)
  loss = reduce_losses(losses, where, axis_name=axis_name)
  return loss, as_sums(loss, where)


def conversion_scores(
  params: dict[str, Any], batch: dict[str, Array], **settings: Any
) -> Float[Array, 'users']:
  """The log-odds of the users of all devices, as of `class_logits`."""
  return class_logits(params, batch, **settings)[:, 0]
