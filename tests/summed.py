"""Loss and gradient over all devices, as tests of objectives compare them."""

import jax

from adaptssr_jax.table.shards import combine, partition
from adaptssr_jax.training.devices import AXIS


def summed(params, batch, key, *, function, more=None):
  """The loss, the metrics and the gradient of the batch of all devices.

  Args:
    params: of the model.
    batch: of this device.
    key: of the step.
    function: (params, batch, key) -> loss and metrics.
    more: what every device has whole of the batch.
  """
  value_and_grad = jax.value_and_grad(function, has_aux=True)
  (loss, metrics), grads = value_and_grad(params, batch | (more or {}), key)
  shards, whole = partition(grads)
  grads = combine(shards, jax.lax.pmean(whole, AXIS))
  return loss, jax.lax.psum(metrics, AXIS), grads
