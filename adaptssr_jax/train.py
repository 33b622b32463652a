"""The training step: pure functions, and the one place that maps devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

AXIS = 'devices'

# (params, batch, key) -> (loss, {name: (sum, count)})
LossFn = Callable[[Any, dict[str, Array], Array], tuple[Array, dict]]


class TrainState(NamedTuple):
  """All that training changes, and all that resuming needs.

  Args:
    step: updates done so far, int32 [].
    params: parameters of the model.
    opt_state: state of the optimizer.
  """

  step: Array
  params: Any
  opt_state: Any


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def train_step(
  state: TrainState,
  batch: dict[str, Array],
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  key: Key[Array, ''],
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """One update on the batch of all devices.

  Args:
    state: the same on every device.
    batch: this device's part.
    loss_fn: (params, batch, key) -> the loss over all devices, and metrics as
      (sum, count) of this device.
    optimizer: an Optax transformation.
    key: of the whole run; the key of the step is folded in here.
    axis_name: the axis of the devices; None where there is but one.

  Returns:
    The next state and the metrics of the batch, the same on every device.
  """
  step_key = jax.random.fold_in(key, state.step)
  grad_fn = jax.grad(loss_fn, has_aux=True)
  grads, metrics = grad_fn(state.params, batch, step_key)
  if axis_name is not None:
    grads = jax.lax.pmean(grads, axis_name)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  next_state = TrainState(state.step + 1, params, opt_state)
  return next_state, mean_metrics(metrics, axis_name=axis_name)


def sum_metrics(
  metrics: dict[str, tuple[Array, Array]], *, axis_name: str | None = None
) -> dict[str, tuple[Array, Array]]:
  """Adds the (sum, count) pairs of all devices."""
  return metrics if axis_name is None else jax.lax.psum(metrics, axis_name)


def mean_metrics(
  metrics: dict[str, tuple[Array, Array]], *, axis_name: str | None = None
) -> dict[str, Array]:
  """The mean of each metric over the users of all devices."""
  totals = sum_metrics(metrics, axis_name=axis_name)
  return {
    name: total / jnp.maximum(count, 1)
    for name, (total, count) in totals.items()
  }


def replicate(tree: Any) -> Any:
  """Puts arrays whole on every local device, where `pmap_step` leaves them.

  A step that starts from anywhere else is compiled a second time, for its own
  results. The memory may be shared with the originals: what donates these
  takes those too.
  """
  whole = NamedSharding(Mesh(jax.local_devices(), (AXIS,)), PartitionSpec())
  return jax.device_put(tree, whole)


def pmap_step(
  step: Callable[[Any, dict[str, Array]], Any], *, donate: bool = False
) -> Callable:
  """Runs a step on all local devices: the only `jax.pmap` of the code base.

  Args:
    step: (state, batch) -> result. The state goes whole to every device, the
      batch is split along its first axis, and the result must be the same on
      every device, as collectives over the axis `train.AXIS` make it.
    donate: let the step take the memory of its state, which cannot be used
      afterwards. For steps that return the next state.

  Returns:
    The compiled step.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=(0,) if donate else (),
  )
