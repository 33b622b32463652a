"""The softmax over a catalogue whose rows are split over the devices."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from adaptssr_jax.ops.item_softmax import pick, softmax_of_chunks

Losses = Float[Array, ' n']
Ids = Int[Array, ' n']


def shard_softmax_losses_and_best(
  hidden: Float[Array, 'n dim'],
  shard: Float[Array, 'rows dim'],
  bias: Float[Array, ' ids'],
  labels: Ids,
  *,
  chunk_size: int | None = None,
  axis_name: str,
) -> tuple[Losses, Ids]:
  """`softmax_losses_and_best` where each device holds a part of the table.

  log sum_i e^z_i = log sum_d e^(log sum_{i of d} e^z_i)

  Every device scores the rows of `hidden` of all devices against its part of
  the ids, and gives each device back what it needs of its own rows.

  Args:
    hidden: `[n, dim]`, h, of this device; as many on every device.
    shard: `[rows, dim]`, this device's rows of E; of the last devices some may
      be beyond the ids.
    bias: `[ids]`, b, of all ids.
    labels: `[n]`, in 0..ids-1, of this device.
    chunk_size: ids scored at a time, see `softmax_losses_and_best`.
    axis_name: the axis of the devices.

  Returns:
    `[n]`, a loss per row of this device, and `[n]`, the id that scores best, of
    equal ones the first.

  Reference:
    Shoeybi et al., "Megatron-LM", 2019 (https://arxiv.org/abs/1909.08053):
    cross entropy over a vocabulary that is split.
  """
  rows, devices = len(shard), lax.axis_size(axis_name)
  first, bias = bias_of_shard(bias, rows, axis_name)
  log_sums, own, top, best = softmax_of_chunks(
    lax.all_gather(hidden, axis_name, tiled=True),
    shard,
    bias,
    lax.all_gather(labels, axis_name, tiled=True) - first,
    chunk_size=chunk_size or rows,
  )
  log_sums, own, top, best = [
    lax.all_to_all(x.reshape(devices, -1), axis_name, 0, 0)
    for x in (log_sums, own, top, best + first)
  ]
  losses = jax.nn.logsumexp(log_sums, axis=0) - pick(own, labels // rows)
  return losses, pick(best, jnp.argmax(top, axis=0))


def bias_of_shard(
  bias: Float[Array, ' ids'], rows: int, axis_name: str
) -> tuple[Int[Array, ''], Float[Array, ' rows']]:
  """The first id that this device holds, and the biases of its ids.

  Args:
    bias: `[ids]`, of all ids.
    rows: how many ids each device holds; of the last devices, some may be
      beyond the ids, and have no share in a softmax.
    axis_name: the axis of the devices.
  """
  first = lax.axis_index(axis_name) * rows
  beyond = lax.axis_size(axis_name) * rows - len(bias)
  least = jnp.finfo(bias.dtype).min
  bias = jnp.pad(bias, (0, beyond), constant_values=least)
  return first, lax.dynamic_slice_in_dim(bias, first, rows)
