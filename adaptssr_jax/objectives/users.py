"""What all objectives share: keys per user, encoding, and metrics as sums."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from adaptssr_jax.encoder.dropout import row_seeds
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.ops.buckets import AT_ONCE, Buckets, in_buckets
from adaptssr_jax.table.lookup import look_up

LossAndMetrics = tuple[Float[Array, ''], dict[str, tuple[Array, Array]]]


def user_keys(
  key: Key[Array, ''], example_id: Int[Array, 'users']
) -> Key[Array, 'users']:
  """A key per user, which depends on no other user and on no device."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_id)


def encode_sequences(
  params: dict[str, Any],
  encoder: UserEncoder,
  items: Int[Array, 'rows length'],
  *,
  keys: Key[Array, 'rows'] | None = None,
  positions: Int[Array, 'rows positions'] | None = None,
  buckets: Buckets = AT_ONCE,
) -> Float[Array, 'rows ...']:
  """The vectors of sequences, or their states at some positions.

  Args:
    params: of the model: `table`, whose rows are looked up, and `encoder`.
    items: the sequences, padded with 0, [rows, length].
    keys: of the dropout of each, [rows]; None: no dropout.
    positions: whose hidden states are wanted, [rows, positions]. The state of
      padding has no meaning, and is zeros beyond the length.

  Returns:
    Vectors, [rows, dim]; with `positions` states, [rows, positions, dim], in
    float32.
  """

  def encode(
    items: Int[Array, 'rows width'],
    embedded: Float[Array, 'rows width dim'],
    seeds: UInt32[Array, 'rows draws 2'] | None,
    positions: Int[Array, 'rows positions'] | None,
  ) -> Float[Array, 'rows ...']:
    apply = functools.partial(
      encoder.apply,
      {'params': params['encoder']},
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

  # Hashed once for all rows: hashing takes longer to compile than to run, and
  # would else be compiled for each bucket width and again for its gradient.
  seeds = None
  if keys is not None and encoder.dropout_rate:
    seeds = row_seeds(keys, draws=encoder.num_dropouts)
  return in_buckets(
    encode,
    items,
    seeds,
    positions,
    buckets=buckets,
    look_up=functools.partial(look_up, params['table']),
  )


def last_behaviours(
  items: Int[Array, 'users wide'], *, length: int
) -> Int[Array, 'users length']:
  """The last behaviours of each user, at most `length`, 0 after them.

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


def encode_users(
  params: dict[str, Any],
  batch: dict[str, Array],
  *,
  encoder: UserEncoder,
  buckets: Buckets = AT_ONCE,
  axis_name: str | None = None,
) -> Float[Array, 'users dim']:
  """The vectors of the users of all devices, without dropout."""
  users = encode_sequences(params, encoder, batch['items'], buckets=buckets)
  if axis_name is None:
    return users
  return jax.lax.all_gather(users, axis_name, tiled=True)


def as_sums(
  loss: Float[Array, ''],
  where: Bool[Array, '*examples'],
  values: Mapping[str, Array] | None = None,
) -> dict[str, tuple[Array, Array]]:
  """The metrics of a batch as (sum, count) over the examples of this device.

  Args:
    loss: over the examples of all devices: each device adds its share of it.
    where: which examples of this device count.
    values: more metrics, a value per example or one for all.
  """
  count = where.sum(dtype=jnp.float32)
  return {'loss': (loss * count, count)} | {
    name: ((value * where).sum(dtype=jnp.float32), count)
    for name, value in (values or {}).items()
  }
