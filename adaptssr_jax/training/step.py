"""The training step: pure functions, and the one place that maps devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Key

from adaptssr_jax.table.shards import combine, partition
from adaptssr_jax.training.devices import AXIS

# (params, batch, key) -> (loss, {name: (sum, count)})
LossFn = Callable[[Any, dict[str, Array], Array], tuple[Array, dict]]
# (batch, key) -> the batch with the random draws of this step added
PrepareFn = Callable[[dict[str, Array], Array], dict[str, Array]]


class TrainState(NamedTuple):
  """Everything that training changes, and all that resuming needs.

  Args:
    step: number of updates done, int32 [].
    params: parameters of the model.
    opt_state: state of the optimizer.
  """

  step: Array
  params: Any
  opt_state: Any


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step.

  Compiled as one program, unless there are `Shards`: their moments have to stay
  on the devices of the shards.
  """

  def init(params: Any) -> tuple[Array, Any]:
    return jnp.zeros((), jnp.int32), optimizer.init(params)

  shards, _ = partition(params)
  init = init if jax.tree.leaves(shards) else jax.jit(init)
  step, opt_state = init(params)
  return TrainState(step, params, opt_state)


def train_step(
  state: TrainState,
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  axis_name: str | None = None,
  prepare: PrepareFn | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """One update on the batch of all devices.

  Args:
    state: the same on every device, except for `Shards`.
    batch: this device's part of the batch.
    key: the key of the run, from which the key of the step is derived.
    loss_fn: (params, batch, key) -> (loss, metrics): the loss over all devices,
      and metrics as (sum, count) over this device. The batch that it gets also
      has `step`, int32 [].
    optimizer: an Optax transformation.
    axis_name: the device axis; None: one device.
    prepare: (batch, key of the step) -> the batch that the loss gets.

  Returns:
    The next state and the metrics of the batch, the same on every device. If
    the loss or a gradient is not finite, only `step` changes in the next state,
    and the metric `skipped` is 1; otherwise it is 0.
  """
  step_key = jax.random.fold_in(key, state.step)
  batch = prepare(batch, step_key) if prepare else batch
  # For losses that change during training, such as a curriculum.
  batch = batch | {'step': state.step}
  grads, metrics, finite = gradients(
    loss_fn, state.params, batch, step_key, axis_name
  )
  params, opt_state = apply_gradients(
    optimizer, grads, state.opt_state, state.params, finite
  )
  return TrainState(state.step + 1, params, opt_state), metrics


def gradients(
  loss_fn: LossFn,
  params: Any,
  batch: dict[str, Array],
  key: Key[Array, ''],
  axis_name: str | None,
) -> tuple[Any, dict[str, Array], Bool[Array, '']]:
  """Gradients, metrics, and whether the step may be taken.

  Args:
    loss_fn: see `train_step`.
    params: the parameters.
    batch: this device's part of the batch.
    key: the key of this step.
    axis_name: the axis of the devices; None: one device.

  Returns:
    Gradients averaged over devices; the metrics of the whole batch; and a bool
    [], True if the loss and all gradients are finite on all devices.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, metrics), grads = value_and_grad(params, batch, key)
  if axis_name is not None:
    grads = _average(grads, axis_name)
  checks = [jnp.isfinite(x).all() for x in jax.tree.leaves((loss, grads))]
  # All-reduce: with a sharded table each device sees only its own gradients.
  bad = 1 - jnp.array(checks).all().astype(jnp.float32)
  metrics = mean_metrics(metrics | {'skipped': (bad, 0)}, axis_name=axis_name)
  skipped = jnp.minimum(metrics['skipped'], 1)
  return grads, metrics | {'skipped': skipped}, skipped == 0


def _average(grads: Any, axis_name: str) -> Any:
  """Averages gradients over devices; those of `Shards` are sums already."""
  shards, replicated = partition(grads)
  size = lax.axis_size(axis_name)
  shards = jax.tree.map(lambda grad: grad / size, shards)
  return combine(shards, lax.pmean(replicated, axis_name))


@jax.named_scope('optimizer')
def apply_gradients(
  optimizer: optax.GradientTransformation,
  grads: Any,
  opt_state: Any,
  params: Any,
  finite: Bool[Array, ''],
) -> tuple[Any, Any]:
  """Updates parameters and optimizer state, or returns them if not `finite`."""
  updates, next_state = optimizer.update(grads, opt_state, params)
  new = optax.apply_updates(params, updates), next_state
  return jax.tree.map(
    functools.partial(jnp.where, finite), new, (params, opt_state)
  )


def mean_metrics(
  metrics: dict[str, tuple[Array, Array]], *, axis_name: str | None = None
) -> dict[str, Array]:
  """The mean of each metric over the users of all devices."""
  totals = metrics if axis_name is None else lax.psum(metrics, axis_name)
  return {
    name: total / jnp.maximum(count, 1)
    for name, (total, count) in totals.items()
  }


class PmapStep(NamedTuple):
  """A compiled step, the result of `pmap_step`."""

  mapped: Callable[..., Any]

  def __call__(self, state: Any, batch: Any, *replicated: Any) -> Any:
    """Runs the step on `batch` arrays [local_devices, ...]."""
    return combine(*self.mapped(partition(state), batch, *replicated))

  def lower(
    self, state: Any, batch: Any, *replicated: Any
  ) -> jax.stages.Lowered:
    """Lowers the step for arguments of these shapes, as `jax.jit` does."""
    return self.mapped.lower(partition(state), batch, *replicated)


def pmap_step(
  step: Callable[..., Any],
  *,
  num_replicated_args: int = 0,
  donate: bool = False,
) -> PmapStep:
  """Compiles a step for all devices: the only `jax.pmap` of the code base.

  With several processes, each calls the step with the batch of its own devices.

  Args:
    step: (state, batch, ...) -> result. The state is replicated, except for
      `Shards`, which are mapped over devices; the batch is mapped along its
      first axis. The result must be the same on every device, which collectives
      over `devices.AXIS` ensure, again except for `Shards`.
    num_replicated_args: number of further arguments, all replicated. Values
      bound by `functools.partial` are constants of the compiled step.
    donate: donate the buffers of the state, for steps that return the next one.

  Returns:
    The compiled step.
  """
  mapped = jax.pmap(
    functools.partial(_run_partitioned, step),
    axis_name=AXIS,
    in_axes=((0, None), 0) + (None,) * num_replicated_args,
    out_axes=(0, None),
    donate_argnums=(0,) if donate else (),
  )
  return PmapStep(mapped)


def _run_partitioned(
  step: Callable[..., Any], state: tuple[Any, Any], *args: Any
) -> tuple[Any, Any]:
  return partition(step(combine(*state), *args))
