"""Shared by all objectives: encoding, keys per user, metrics as sums."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from adaptssr_jax.encoder.dropout import row_seeds
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.ops.buckets import AT_ONCE, Buckets, in_buckets
from adaptssr_jax.ops.reductions import gather, reduce_losses
from adaptssr_jax.table.lookup import look_up

LossAndMetrics = tuple[Float[Array, ''], dict[str, tuple[Array, Array]]]


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How an objective encodes sequences, and which devices share its batch.

  Args:
    encoder: the encoder that is trained.
    buckets: how sequences are grouped by length, see `ops.buckets`.
    deterministic: True switches dropout off, as in validation.
    axis_name: the device axis over which the batch is split; None: one device.
  """

  encoder: UserEncoder
  buckets: Buckets = AT_ONCE
  deterministic: bool = False
  axis_name: str | None = None

  def __call__(
    self,
    params: dict[str, Any],
    items: Int[Array, '*rows length'],
    keys: Key[Array, '*rows'] | None = None,
    *,
    positions: Int[Array, '*rows positions'] | None = None,
  ) -> Float[Array, '...']:
    """Encodes sequences as vectors, or as hidden states at some positions.

    Args:
      params: parameters of the model: `table`, whose rows are looked up, and
        `encoder`.
      items: sequences, padded with 0, [..., length].
      keys: dropout keys, one per sequence, [...]; None, like `deterministic`,
        switches dropout off.
      positions: positions whose hidden states are returned, [..., positions].
        The state of padding has no meaning; beyond the length it is zeros.

    Returns:
      User vectors, [..., dim]; with `positions` hidden states, [..., positions,
      dim], in float32.
    """
    *shape, length = items.shape
    rows = math.prod(shape)
    has_dropout = self.encoder.dropout_rate > 0 and not self.deterministic
    seeds = None
    if keys is not None and has_dropout:
      # Keys are hashed once for all rows: hashing takes longer to compile than
      # to run, and would else be compiled for each bucket width and gradient.
      seeds = row_seeds(keys.reshape(rows), draws=self.encoder.num_dropouts)
    if positions is not None:
      positions = positions.reshape(rows, positions.shape[-1])
    encoded = in_buckets(
      functools.partial(_encode, self.encoder, params['encoder']),
      items.reshape(rows, length),
      seeds,
      positions,
      buckets=self.buckets,
      look_up=functools.partial(look_up, params['table']),
    )
    return encoded.reshape(*shape, *encoded.shape[1:])

  def all_users(
    self, params: dict[str, Any], batch: dict[str, Array]
  ) -> Float[Array, 'users dim']:
    """The vectors of the users of all devices, without dropout."""
    return gather(self(params, batch['items']), self.axis_name)


def _encode(
  encoder: UserEncoder,
  params: dict[str, Any],
  items: Int[Array, 'rows width'],
  embedded: Float[Array, 'rows width dim'],
  seeds: UInt32[Array, 'rows draws 2'] | None,
  positions: Int[Array, 'rows positions'] | None,
) -> Float[Array, 'rows ...']:
  """Encodes sequences whose items have been looked up."""
  apply = functools.partial(
    encoder.apply,
    {'params': params},
    items,
    deterministic=seeds is None,
    seeds=seeds,
    embedded=embedded,
  )
  if positions is None:
    return apply()
  states = apply(method='hidden_states').astype(jnp.float32)
  take = functools.partial(jnp.take, axis=0, mode='fill', fill_value=0)
  return jax.vmap(take)(states, positions)


def user_keys(
  key: Key[Array, ''], example_id: Int[Array, 'users'], num: int | None = None
) -> Key[Array, 'users ...']:
  """Returns a key per user, [users], or `num` keys per user, [users, num].

  They depend on `key` and on the user, not on the batch or the device.
  """
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_id)
  if num is None:
    return keys
  return jax.vmap(functools.partial(jax.random.split, num=num))(keys)


def last_behaviours(
  items: Int[Array, 'users wide'], *, length: int
) -> Int[Array, 'users length']:
  """Returns the last `length` behaviours of each user, padded with 0.

  Example:
    >>> items = jnp.array([[4, 5, 6], [7, 0, 0]])
    >>> last_behaviours(items, length=2).tolist()
    [[5, 6], [7, 0]]
  """
  if items.shape[1] <= length:
    return items
  count = jnp.sum(items != 0, axis=1, keepdims=True)
  index = jnp.maximum(count - length, 0) + jnp.arange(length)[None]
  return jnp.take_along_axis(items, index, axis=1)


def mean_loss(
  losses: Float[Array, '*examples'],
  where: Bool[Array, '*examples'],
  values: Mapping[str, Array] | None = None,
  *,
  axis_name: str | None = None,
) -> LossAndMetrics:
  """The mean loss over the examples of all devices, and metrics as sums.

  Args:
    losses: a loss per example of this device.
    where: False marks examples that are left out, such as padding.
    values: further metrics, a value per example.
    axis_name: the device axis over which the batch is split; None: one device.

  Returns:
    The mean, 0 if no example is left; and {name: (sum, count)} over the
    examples of this device, for `loss` and each of `values`.
  """
  loss = reduce_losses(losses, where, axis_name=axis_name)
  return loss, as_sums(loss, where, values)


def as_sums(
  loss: Float[Array, ''],
  where: Bool[Array, '*examples'],
  values: Mapping[str, Array] | None = None,
) -> dict[str, tuple[Array, Array]]:
  """Metrics of a batch as (sum, count) over the examples of this device.

  Args:
    loss: the mean over the examples of all devices.
    where: False marks examples of this device that are left out.
    values: further metrics, a value per example or one for all examples.
  """
  count = where.sum(dtype=jnp.float32)
  return {'loss': (loss * count, count)} | {
    name: ((value * where).sum(dtype=jnp.float32), count)
    for name, value in (values or {}).items()
  }
