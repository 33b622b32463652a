"""Training that touches only the rows of the item table that a batch needs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int, Key

from adaptssr_jax.table.compact import compact_ids
from adaptssr_jax.table.row_adam import (
  RowAdamState,
  RowTransformation,
  caught_up,
  caught_up_table,
)
from adaptssr_jax.table.shards import (
  fetch_rows,
  gather_gradients,
  take_table,
  with_table,
)
from adaptssr_jax.training.devices import Shards, is_shards
from adaptssr_jax.training.step import (
  LossFn,
  PmapStep,
  TrainState,
  apply_gradients,
  gradients,
  pmap_step,
)


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
  """The state before the first `row_train_step`.

  Args:
    params: whose item table may be of `Shards`.
    optimizer: of all parameters but the item table.
    table_optimizer: of the rows of the table.
  """
  table, others = take_table(params)
  if is_shards(table):
    init = functools.partial(_init_shard, table_optimizer)
    table_state = pmap_step(init)(table, None)
  else:
    table_state = table_optimizer.init(table)
  opt_state = RowOptState(table_state, optimizer.init(others))
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
    As `train_step`; the table of the state is to be read by
    `apply_pending_updates`.
  """
  table, others = take_table(state.params)
  table_state, opt_state = state.opt_state
  ids, items = _compact_items(batch['items'], len(table) - 1, size, axis_name)
  rows = table_optimizer.gather(table, table_state, ids)
  grads, metrics, finite = gradients(
    loss_fn,
    with_table(others, rows),
    batch | {'items': items},
    jax.random.fold_in(key, state.step),
    axis_name,
  )
  row_grads, grads = take_table(grads)
  table, table_state = table_optimizer.update(
    row_grads, table_state, table, ids, where=finite
  )
  others, opt_state = apply_gradients(
    optimizer, grads, opt_state, others, finite
  )
  params = with_table(others, table)
  opt_state = RowOptState(table_state, opt_state)
  return TrainState(state.step + 1, params, opt_state), metrics


def shard_row_train_step(
  state: TrainState,
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  table_optimizer: RowTransformation,
  mask_id: int,
  size: int,
  axis_name: str,
) -> tuple[TrainState, dict[str, Array]]:
  """As `row_train_step`, of a table whose rows are split over the devices.

  Each device fetches the rows of its part of the batch into a small table of
  its own, and sends their gradients back to where the rows are.

  Args:
    state: of `init_row_state`, the table of `Shards`.
    batch: as of `row_train_step`.
    key: as of `row_train_step`.
    loss_fn: as of `row_train_step`.
    optimizer: as of `row_train_step`.
    table_optimizer: as of `row_train_step`.
    mask_id: the last row of the whole table.
    size: rows of the small table of a device.
    axis_name: the axis of the devices.

  Returns:
    As `row_train_step`.
  """
  table, others = take_table(state.params)
  table, (table_state, opt_state) = table.rows, state.opt_state
  table_state = _local_state(table_state)
  ids, items = compact_ids(batch['items'], mask_id=mask_id, size=size)
  send = functools.partial(
    gather_gradients, ids=ids, num_rows=len(table), axis_name=axis_name
  )
  rows = fetch_rows(
    functools.partial(table_optimizer.gather, table, table_state),
    ids,
    num_rows=len(table),
    axis_name=axis_name,
  )
  grads, metrics, finite = gradients(
    functools.partial(_loss_of_shard, loss_fn),
    with_table(others, Shards(rows)),
    batch | {'items': items},
    jax.random.fold_in(key, state.step),
    axis_name,
  )
  row_grads, grads = take_table(grads)
  row_grads, places = send(row_grads.rows)
  table, table_state = table_optimizer.update(
    row_grads, table_state, table, places, where=finite
  )
  others, opt_state = apply_gradients(
    optimizer, grads, opt_state, others, finite
  )
  params = with_table(others, Shards(table))
  opt_state = RowOptState(_split_state(table_state), opt_state)
  return TrainState(state.step + 1, params, opt_state), metrics


def apply_pending_updates(state: TrainState) -> Any:
  """The parameters to use after this step: no row of the table is behind.

  Go on training with the state itself, not with `caught_up_state`: that is the
  same by rounding only, and what a run learns would depend on who looked when.
  """
  if not isinstance(state.opt_state, RowOptState):
    return state.params
  table, others = take_table(state.params)
  if is_shards(table):
    table = _mapped(_catch_up_shard_table)((table, state.opt_state.table), None)
  else:
    table = caught_up_table(table, state.opt_state.table)
  return with_table(others, table)


def caught_up_state(state: TrainState) -> TrainState:
  """The state of which no row is behind, nor of the optimizer."""
  if not isinstance(state.opt_state, RowOptState):
    return state
  table, others = take_table(state.params)
  parts = table, state.opt_state.table
  if is_shards(table):
    table, table_state = _mapped(_catch_up_shard)(parts, None)
  else:
    table, table_state = jax.jit(caught_up)(*parts)
  return state._replace(
    params=with_table(others, table),
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


def _loss_of_shard(
  loss_fn: LossFn, params: dict[str, Any], *args: Any
) -> tuple[Array, dict[str, Any]]:
  """A loss of rows that are this device's own, as is their gradient."""
  rows, others = take_table(params)
  return loss_fn(with_table(others, rows.rows), *args)


@functools.cache
def _mapped(function: Callable[..., Any]) -> PmapStep:
  """One program of each function, however often it is asked for."""
  return pmap_step(function)


def _init_shard(
  optimizer: RowTransformation, table: Shards, _: None
) -> RowAdamState:
  return _split_state(optimizer.init(table.rows))


def _catch_up_shard_table(
  parts: tuple[Shards, RowAdamState], _: None
) -> Shards:
  table, state = parts
  return Shards(caught_up_table(table.rows, _local_state(state)))


def _catch_up_shard(
  parts: tuple[Shards, RowAdamState], _: None
) -> tuple[Shards, RowAdamState]:
  table, state = caught_up(parts[0].rows, _local_state(parts[1]))
  return Shards(table), _split_state(state)


def _split_state(state: RowAdamState) -> RowAdamState:
  """Tells what is of the rows of one device."""
  rows = {name: Shards(getattr(state, name)) for name in _OF_ROWS}
  return state._replace(**rows)


def _local_state(state: RowAdamState) -> RowAdamState:
  """Undoes `_split_state`."""
  rows = {name: getattr(state, name).rows for name in _OF_ROWS}
  return state._replace(**rows)


_OF_ROWS = ('mu', 'nu', 'last', 'to_come')
