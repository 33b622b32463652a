"""An objective on eight devices with a split table, as tests compare it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.table.lookup import with_batch_rows
from adaptssr_jax.table.shards import combine, partition
from adaptssr_jax.training.devices import AXIS, shard
from adaptssr_jax.training.step import pmap_step


def batch_of(num_users, *, length, num_items):
  """Users of no, one, two and more behaviours; the last one is padding."""
  rng = np.random.default_rng(0)
  lengths = np.array([0, 1, 2, *rng.integers(3, length + 1, num_users - 3)])
  items = rng.integers(1, num_items + 1, (num_users, length)).astype(np.int32)
  return {
    'items': jnp.where(np.arange(length) < lengths[:, None], items, 0),
    'where': jnp.arange(num_users) < num_users - 1,
    'example_id': jnp.arange(num_users),
  }


def on_eight_devices(objective, params, batch, key, *, mask_id, shared=None):
  """The loss, the metrics and the gradients of a batch of all devices.

  Args:
    objective: (params, batch, key) -> loss and metrics, over the axis `AXIS`.
    params: of the model, with the whole table.
    batch: of all users; each device gets an eighth of them.
    key: of the step.
    mask_id: the last row of the table.
    shared: entries of the batch that every device gets whole.
  """
  function = with_batch_rows(objective, mask_id=mask_id, axis_name=AXIS)
  step = functools.partial(_summed, function=function, shared=shared or {})
  split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
  loss, metrics, grads = pmap_step(step, num_replicated_args=1)(
    params | {'table': shard(params['table'])}, split, key
  )
  # Each device has the sum over all of them.
  rows = grads['table'].rows
  table = rows.reshape(-1, rows.shape[-1])[: len(params['table'])] / 8
  return loss, metrics, grads | {'table': table}


def _summed(params, batch, key, *, function, shared):
  value_and_grad = jax.value_and_grad(function, has_aux=True)
  (loss, metrics), grads = value_and_grad(params, batch | shared, key)
  shards, whole = partition(grads)
  grads = combine(shards, jax.lax.pmean(whole, AXIS))
  return loss, jax.lax.psum(metrics, AXIS), grads
