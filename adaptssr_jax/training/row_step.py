"""Training that touches only the rows of the item table that a batch needs."""

import functools
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Int, Key

from adaptssr_jax.table.exchange import fetch_rows, gather_gradients
from adaptssr_jax.table.lookup import BatchRows, needed_ids
from adaptssr_jax.table.row_adam import (
  RowAdamState,
  RowTransformation,
  apply_pending_rows,
)
from adaptssr_jax.table.shards import Shards, is_shards, local_rows
from adaptssr_jax.training.step import (
  LossFn,
  PrepareFn,
  TrainState,
  apply_gradients,
  gradients,
  init_state,
  pmap_step,
)


class RowOptState(NamedTuple):
  """State of the optimizers if the item table has an optimizer of its own.

  Args:
    table: state for the rows of the table; some have pending updates.
    others: state for all other parameters.
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
    params: the parameters of a model; the item table may be `Shards`.
    optimizer: for all parameters except the item table.
    table_optimizer: for the rows of the table.
  """
  table, others = _take_table(params)
  if is_shards(table):
    init = functools.partial(_init_shard, table_optimizer)
    table_state = pmap_step(init)(table, None)
  else:
    table_state = jax.jit(table_optimizer.init)(table)
  state = init_state(others, optimizer)
  opt_state = RowOptState(table_state, state.opt_state)
  return TrainState(state.step, params, opt_state)


def row_train_step(
  state: TrainState,
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  table_optimizer: RowTransformation,
  mask_id: int,
  axis_name: str | None = None,
  prepare: PrepareFn | None = None,
) -> tuple[TrainState, dict[str, Array]]:
  """As `train_step`, in time that does not depend on the number of items.

  Pending updates of the rows of the batch are applied, the loss is
  differentiated with respect to these rows, and one Adam step is written back.
  If the table is replicated, every device makes the same updates, of the rows
  of the whole batch. If it is sharded, each device fetches the rows of its part
  of the batch and returns their gradients to the devices that hold them.

  Args:
    state: see `init_row_state`; the same on every device, except for `Shards`.
    batch: this device's part of the batch.
    key: see `train_step`.
    loss_fn: see `train_step`; the table of its parameters is `BatchRows`.
    optimizer: for all parameters except the item table.
    table_optimizer: for the rows of the table.
    mask_id: the last row of the table.
    axis_name: the device axis; None: one device.
    prepare: see `train_step`.

  Returns:
    As `train_step`. To use the table of the state outside training, call
    `apply_pending_updates`.
  """
  step_key = jax.random.fold_in(key, state.step)
  batch = prepare(batch, step_key) if prepare else batch
  # For losses that change during training, such as a curriculum.
  batch = batch | {'step': state.step}
  table, others = _take_table(state.params)
  parts = table, state.opt_state.table
  rows_here, table_state = local_rows(parts)
  read = functools.partial(table_optimizer.gather, rows_here, table_state)
  exchange = {'num_rows': len(rows_here), 'axis_name': axis_name}
  if is_shards(table):
    ids = needed_ids(batch, mask_id=mask_id)
    rows = Shards(fetch_rows(read, ids, **exchange))
  else:
    ids = needed_ids(batch, mask_id=mask_id, all_of=axis_name)
    rows = read(ids)
  grads, metrics, finite = gradients(
    functools.partial(_loss_of_rows, loss_fn, ids),
    others | {'table': rows},
    batch,
    step_key,
    axis_name,
  )
  row_grads, grads = _take_table(grads)
  if is_shards(table):
    row_grads, ids = gather_gradients(row_grads.rows, ids, **exchange)
  updated = table_optimizer.update(
    row_grads, table_state, rows_here, ids, where=finite
  )
  # The same arrays are `Shards` as before.
  table, table_state = jax.tree.unflatten(
    jax.tree.structure(parts), jax.tree.leaves(updated)
  )
  others, opt_state = apply_gradients(
    optimizer, grads, state.opt_state.others, others, finite
  )
  params = others | {'table': table}
  opt_state = RowOptState(table_state, opt_state)
  return TrainState(state.step + 1, params, opt_state), metrics


def apply_pending_updates(state: TrainState) -> Any:
  """The parameters of a state, with the pending updates of all rows applied.

  Use them to evaluate. Continue training from `state` itself: applying updates
  early changes their rounding, so the result of a run would depend on when it
  is evaluated.
  """
  if not isinstance(state.opt_state, RowOptState):
    return state.params
  table, others = _take_table(state.params)
  parts = table, state.opt_state.table
  if is_shards(table):
    table = _mapped(_apply_pending)(parts, None)
  else:
    table = apply_pending_rows(*parts)
  return others | {'table': table}


def _take_table(params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Separates the item table from the other parameters, or gradients."""
  others = dict(params)
  return others.pop('table'), others


def _loss_of_rows(
  loss_fn: LossFn,
  ids: Int[Array, ' size'],
  params: dict[str, Any],
  *args: Any,
) -> tuple[Array, dict[str, Any]]:
  """A loss as a function of the rows of a batch."""
  table = BatchRows(ids, local_rows(params['table']))
  return loss_fn(params | {'table': table}, *args)


# Cached, so that each function is compiled once.
_mapped = functools.cache(pmap_step)


def _init_shard(
  optimizer: RowTransformation, table: Shards, _: None
) -> RowAdamState:
  state = optimizer.init(table.rows)
  names = ('mu', 'nu', 'last', 'to_come')
  return state._replace(
    **{name: Shards(getattr(state, name)) for name in names}
  )


def _apply_pending(parts: tuple[Shards, RowAdamState], _: None) -> Shards:
  return Shards(apply_pending_rows(*local_rows(parts)))
