"""Classification of users, and prediction of a rare event (conversion)."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from adaptssr_jax.encoder.model import TaskHead
from adaptssr_jax.objectives.users import (
  Encoding,
  LossAndMetrics,
  mean_loss,
  user_keys,
)


def classification_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  head: TaskHead,
) -> LossAndMetrics:
  """Cross entropy of the classes of a batch of users.

  Args:
    batch: also has `label` int32 [users].
    head: the head whose outputs are the logits of the classes.
  """
  logits = user_logits(params, batch, key, encoding=encoding, head=head)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['label']
  )
  return mean_loss(losses, batch['where'], axis_name=encoding.axis_name)


def user_logits(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  head: TaskHead,
) -> Float[Array, 'users outputs']:
  """The outputs of the head for the users of this device, with dropout."""
  keys = user_keys(key, batch['example_id'])
  users = encoding(params, batch['items'], keys)
  return head.apply({'params': params['head']}, users)


def class_logits(
  params: dict[str, Any],
  batch: dict[str, Array],
  *,
  encoding: Encoding,
  head: TaskHead,
) -> Float[Array, 'users classes']:
  """The logits of the users of all devices, without dropout."""
  users = encoding.all_users(params, batch)
  return head.apply({'params': params['head']}, users)


def conversion_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  head: TaskHead,
  positive_weight: float = 1.0,
) -> LossAndMetrics:
  """Binary cross entropy of a batch of users.

  mean over users of w^y * (-y log p - (1 - y) log(1 - p)),  p = sigma(score)

  With w = 1 a score is the log-odds of the event. Another weight shifts scores
  by log w: the order of users stays, but the probabilities are no longer
  calibrated.

  Args:
    batch: also has `label` int32 [users], 1 where the event happened.
    head: a head with one output, the score.
    positive_weight: w, the weight of users with the event.
  """
  scores = user_logits(params, batch, key, encoding=encoding, head=head)[:, 0]
  label = batch['label']
  losses = optax.sigmoid_binary_cross_entropy(scores, label)
  losses = losses * jnp.where(label != 0, positive_weight, 1.0)
  return mean_loss(losses, batch['where'], axis_name=encoding.axis_name)


def conversion_scores(
  params: dict[str, Any], batch: dict[str, Array], **settings: Any
) -> Float[Array, 'users']:
  """The log-odds of the event for the users of all devices, without dropout."""
  return class_logits(params, batch, **settings)[:, 0]
