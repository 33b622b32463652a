"""The training step: pure functions, and the one place that maps devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Key

from adaptssr_jax.compact import compact_ids
from adaptssr_jax.optimizers import (
  RowAdamState,
  RowTransformation,
  caught_up,
  caught_up_table,
)

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
  key: Key[Array, ''],
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """One update on the batch of all devices.

  Args:
    state: the same on every device.
    batch: this device's part.
    key: of the whole run, from which that of the step follows.
    loss_fn: (params, batch, key) -> the loss over all devices, and metrics as
      (sum, count) of this device.
    optimizer: an Optax transformation.
    axis_name: the axis of the devices; None where there is but one.

  Returns:
    The next state and the metrics of the batch, the same on every device. Where
    the loss or a gradient is not finite, the next state is this one but for its
    step, and the metric `skipped` is 1, else 0.
  """
  step_key = jax.random.fold_in(key, state.step)
  grads, metrics, finite = _gradients(
    loss_fn, state.params, batch, step_key, axis_name
  )
  params, opt_state = _update(
    optimizer, grads, state.opt_state, state.params, finite
  )
  return TrainState(state.step + 1, params, opt_state), metrics


class RowOptState(NamedTuple):
  """State of the optimizers where the item table has one of its own.

  Args:
    table: of the rows of the table, some of which are behind.
    others: of all other parameters.
  """

  table: RowAdamState
  others: Any


def init_row_state(
  params: dict[str, Any],
  optimizer: optax.GradientTransformation,
  table_optimizer: RowTransformation,
) -> TrainState:
  """The state before the first `row_train_step`."""
  table, others = _take_table(params)
  opt_state = RowOptState(table_optimizer.init(table), optimizer.init(others))
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def row_train_step(
  state: TrainState,
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  table_optimizer: RowTransformation,
  size: int,
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """As `train_step`, in time that does not depend on the number of items.

  The rows of the table that the batch of all devices needs are gathered into a
  small table, which the loss takes for the whole one, and written back.

  Args:
    state: of `init_row_state`, the same on every device.
    batch: this device's part.
    key: as of `train_step`.
    loss_fn: as of `train_step`, of an encoder of `size - 2` items.
    optimizer: of all parameters but the item table.
    table_optimizer: of the rows of the table.
    size: rows of the small table, see `compact.compact_ids`.
    axis_name: the axis of the devices; None where there is but one.

  Returns:
    The next state, whose table is to be read by `caught_up_params`, and the
    metrics.
  """
  table, others = _take_table(state.params)
  table_state, opt_state = state.opt_state
  ids, items = _compact_items(batch['items'], len(table) - 1, size, axis_name)
  rows = table_optimizer.gather(table, table_state, ids)
  step_key = jax.random.fold_in(key, state.step)
  grads, metrics, finite = _gradients(
    loss_fn,
    _with_table(others, rows),
    batch | {'items': items},
    step_key,
    axis_name,
  )
  row_grads, grads = _take_table(grads)
  table, table_state = table_optimizer.update(
    row_grads, table_state, table, ids, where=finite
  )
  others, opt_state = _update(optimizer, grads, opt_state, others, finite)
  params = _with_table(others, table)
  opt_state = RowOptState(table_state, opt_state)
  return TrainState(state.step + 1, params, opt_state), metrics


def _gradients(
  loss_fn: LossFn,
  params: Any,
  batch: dict[str, Array],
  key: Key[Array, ''],
  axis_name: str | None,
) -> tuple[Any, dict[str, Array], Bool[Array, '']]:
  """The gradients and the metrics of the batch of all devices.

  And whether the loss and all gradients are finite.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, metrics), grads = value_and_grad(params, batch, key)
  if axis_name is not None:
    grads = lax.pmean(grads, axis_name)
  finite = jnp.array(
    [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((loss, grads))]
  ).all()
  metrics = mean_metrics(metrics, axis_name=axis_name)
  return grads, metrics | {'skipped': 1.0 - finite}, finite


def _update(
  optimizer: optax.GradientTransformation,
  grads: Any,
  opt_state: Any,
  params: Any,
  finite: Bool[Array, ''],
) -> tuple[Any, Any]:
  """The next parameters and state of the optimizer, if the step is taken."""
  updates, next_state = optimizer.update(grads, opt_state, params)
  new = optax.apply_updates(params, updates), next_state
  return jax.tree.map(
    functools.partial(jnp.where, finite), new, (params, opt_state)
  )


def caught_up_params(state: TrainState) -> Any:
  """The parameters to use after this step: no row of the table is behind.

  Go on training with the state itself, not with `caught_up_state`: that is the
  same by rounding only, and what a run learns would depend on who looked when.
  """
  if not isinstance(state.opt_state, RowOptState):
    return state.params
  table, others = _take_table(state.params)
  return _with_table(others, caught_up_table(table, state.opt_state.table))


def caught_up_state(state: TrainState) -> TrainState:
  """The state of which no row is behind, nor of the optimizer."""
  if not isinstance(state.opt_state, RowOptState):
    return state
  table, others = _take_table(state.params)
  table, table_state = jax.jit(caught_up)(table, state.opt_state.table)
  return state._replace(
    params=_with_table(others, table),
    opt_state=state.opt_state._replace(table=table_state),
  )


def _compact_items(
  items: Int[Array, 'users length'],
  mask_id: int,
  size: int,
  axis_name: str | None,
) -> tuple[Int[Array, ' size'], Int[Array, 'users length']]:
  """`compact_ids` of the items of all devices, and those of this one."""
  if axis_name is None:
    return compact_ids(items, mask_id=mask_id, size=size)
  everyone = lax.all_gather(items, axis_name)
  ids, compact = compact_ids(everyone, mask_id=mask_id, size=size)
  return ids, compact[lax.axis_index(axis_name)]


def _take_table(tree: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
  """The item table of parameters or gradients, and all that is left."""
  encoder = dict(tree['encoder'])
  return encoder.pop('item_embedding'), {**tree, 'encoder': encoder}


def _with_table(tree: dict[str, Any], table: Array) -> dict[str, Any]:
  return {**tree, 'encoder': {**tree['encoder'], 'item_embedding': table}}


def sum_metrics(
  metrics: dict[str, tuple[Array, Array]], *, axis_name: str | None = None
) -> dict[str, tuple[Array, Array]]:
  """Adds the (sum, count) pairs of all devices."""
  return metrics if axis_name is None else lax.psum(metrics, axis_name)


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
  return jax.device_put(tree, _on_devices(PartitionSpec()))


def split(batch: dict[str, Any]) -> dict[str, Array]:
  """Puts each part of a batch on its local device, where `pmap_step` takes it.

  A step that is also given batches of NumPy is compiled a second time for them.

  Args:
    batch: NumPy arrays [local_devices, ...].

  Returns:
    The same arrays, each split along its first axis.
  """
  return jax.device_put(batch, _on_devices(PartitionSpec(AXIS)))


def _on_devices(spec: PartitionSpec) -> NamedSharding:
  return NamedSharding(Mesh(jax.local_devices(), (AXIS,)), spec)


def pmap_step(
  step: Callable[..., Any], *, whole: int = 0, donate: bool = False
) -> Callable:
  """Runs a step on all local devices: the only `jax.pmap` of the code base.

  Args:
    step: (state, batch, ...) -> result. The state goes whole to every device,
      the batch is split along its first axis, and the result must be the same
      on every device, as collectives over the axis `train.AXIS` make it.
    whole: how many arguments there are besides, which go whole too. What is
      not an argument but bound, such as a key, is compiled into the step.
    donate: let the step take the memory of its state, which cannot be used
      afterwards. For steps that return the next state.

  Returns:
    The compiled step.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0) + (None,) * whole,
    out_axes=None,
    donate_argnums=(0,) if donate else (),
  )
