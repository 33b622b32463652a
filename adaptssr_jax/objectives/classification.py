"""Classification of users, the supervised objective of fine-tuning."""

from typing import Any

import optax
from jaxtyping import Array, Float, Key

from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.objectives.users import (
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
) -> tuple[Float[Array, ''], dict[str, tuple[Array, Array]]]:
  """Cross entropy of the classes of a batch of users.

  Args:
    batch: `items` int32 [users, length], `label` int32 [users], `where` bool
      [users], and `example_id` int32 [users], of this device.
    head: gives the logits of the classes.

  Returns:
    The loss over the users of all devices, and the metrics as
    (sum, count) over the users of this device.
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
  """What the head makes of the users of this device, under dropout."""
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
