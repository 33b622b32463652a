"""Conversion of users: one binary event, rare as a rule."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.objectives.classification import class_logits, user_logits
from adaptssr_jax.objectives.users import as_sums
from adaptssr_jax.ops.buckets import AT_ONCE, Buckets
from adaptssr_jax.ops.reductions import reduce_losses


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
) -> tuple[Float[Array, ''], dict[str, tuple[Array, Array]]]:
  """Binary cross entropy of a batch of users.

  mean over users of w^y * (-y log p - (1 - y) log(1 - p)),  p = sigma(score)

  With w = 1 a score is the log-odds of the event; another weight shifts it by
  log w, which changes no order of users but spoils their probabilities.

  Args:
    batch: `items` int32 [users, length], `label` int32 [users], 1 where the
      event came, `where` bool [users], and `example_id` int32 [users], of this
      device.
    head: gives the score, its only output.
    positive_weight: w, what a user with the event counts.

  Returns:
    The loss over the users of all devices, and the metrics as
    (sum, count) over the users of this device.
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
  params: dict[str, Any],
  batch: dict[str, Array],
  *,
  encoder: UserEncoder,
  head: TaskHead,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> Float[Array, 'users']:
  """The log-odds of the users of all devices, without dropout."""
  return class_logits(
    params,
    batch,
    encoder=encoder,
    head=head,
    buckets=buckets,
    axis_name=axis_name,
  )[:, 0]
