"""Adam over the embedding rows that a batch touches.

Dense Adam moves every row at every step, even rows without a gradient, since
their moments decay. The sum of such moves has a closed form. So a row is only
updated when a batch needs it, and the time of a step is proportional to the
size of the batch, not of the table. If the table is donated, rows are written
in place:

    ids = distinct_ids(items, mask_id=mask_id)
    gradients = jax.grad(loss)(optimizer.gather(table, state, ids))
    table, state = optimizer.update(gradients, state, table, ids)
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

Table = Float[Array, 'rows dim']
Ids = Int[Array, ' ids']
Rows = Float[Array, 'ids dim']


class AdamSettings(NamedTuple):
  """Settings of Adam, in float32; `new1` and `new2` are 1 - b1 and 1 - b2."""

  learning_rate: Float[Array, '']
  b1: Float[Array, '']
  b2: Float[Array, '']
  eps: Float[Array, '']
  # Stored, since 1 minus the float32 of 0.999 has a relative error of 1e-5.
  new1: Float[Array, '']
  new2: Float[Array, '']


class RowAdamState(NamedTuple):
  """State of Adam; each row has all updates up to its own step `last`."""

  count: Int[Array, '']  # number of steps done
  mu: Table  # first moment of each row, at its step `last`
  nu: Table  # second moment of each row, at its step `last`
  last: Int[Array, ' rows']  # step up to which each row is updated, initially 0
  to_come: Float[Array, 'rows 3']  # sums A_n of `row_adam`, from `last` on
  to_come_now: Float[Array, '3']  # the same sums, from `count` on
  settings: AdamSettings


class RowTransformation(NamedTuple):
  """The pure functions of an optimizer of rows."""

  init: Callable[[Table], RowAdamState]
  # (table, state, ids) -> these rows with their pending updates applied
  gather: Callable[[Table, RowAdamState, Ids], Rows]
  # (gradients of these rows, state, table, ids, *, where=True) -> (table,
  # state): one step, or no change if `where` is False
  update: Callable[..., tuple[Table, RowAdamState]]


class _Rows(NamedTuple):
  """Some rows of the table and of the state."""

  table: Rows
  mu: Rows
  nu: Rows
  last: Ids
  to_come: Float[Array, 'ids 3']


def row_adam(
  learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> RowTransformation:
  """Adam over the rows of a batch, equal to `optax.adam` on the whole table.

  A row that has the moments m and v at step t has the moments b1^k m and b2^k v
  after k steps without a gradient, and has moved by

      -lr sum_{j=1..k} a_j m / (r / c_j + eps)  =  -lr A_1 m / (r + E),
      a_j = b1^j / (1 - b1^(t+j)),  c_j = sqrt((1 - b2^(t+j)) / b2^j),
      r = sqrt(v),  A_n = sum_{j=1..k} a_j c_j^n

  where E lies between eps A_2 / A_1, which is exact for small eps, and
  eps A_1 / A_0, which is exact for large eps. E is computed as their mean,
  weighted by r and eps A_1 / A_0. The relative error of the move is then up to
  1e-2 at t = 1, up to 1e-4 from t = 100 on, and 0 for k = 1. The sum over k
  steps is the sum from t to infinity, which is stored when the row is written,
  minus the sum from t + k to infinity, which is the same for all rows, times
  b1^k / b2^(nk/2).

  Ids must be distinct. An id out of range, such as the number of rows, marks an
  empty slot: zeros are gathered for it, and nothing is written. An element
  whose gradients were all 0 does not move, even with eps = 0. The settings are
  kept in the state: to change them, apply all pending updates by
  `apply_pending_rows` and begin again from `init`.

  Args:
    learning_rate: lr.
    b1: decay rate of the first moment.
    b2: decay rate of the second moment.
    eps: added to the square root of the second moment.

  Returns:
    `init`, `gather` and `update`.

  Raises:
    ValueError: Unless 0 <= b1 < b2 < 1, for which the sums above converge.

  Example:
    >>> optimizer = row_adam(0.1)
    >>> table = jnp.ones((4, 2))
    >>> state = optimizer.init(table)
    >>> ids = jnp.array([2, 4])
    >>> gradients = jnp.array([[5.0, 0.0], [7.0, 7.0]])
    >>> table, state = optimizer.update(gradients, state, table, ids)
    >>> print(optimizer.gather(table, state, ids).round(4))
    [[0.9 1. ]
     [0.  0. ]]

  Reference:
    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
  """
  if not 0 <= b1 < b2 < 1:
    raise ValueError(f'0 <= b1 < b2 < 1 must hold, not b1={b1}, b2={b2}.')
  settings = learning_rate, b1, b2, eps, 1 - b1, 1 - b2
  # Terms decrease by the factor b1 / b2; those that are left out are below the
  # precision of float32.
  terms = math.ceil(math.log(1e-9) / math.log(b1 / b2)) if b1 else 1
  return RowTransformation(
    init=functools.partial(_init, settings, terms),
    gather=jax.named_scope('optimizer')(_gather),
    update=jax.named_scope('optimizer')(functools.partial(_update, terms)),
  )


@jax.jit
def apply_pending_rows(table: Table, state: RowAdamState) -> Table:
  """Applies the pending updates of all rows, to use the table outside training.

  Training continues from the table and the state that were passed in.

  Args:
    table: `[rows, dim]`, some rows of which have pending updates.
    state: the state of `row_adam`.

  Returns:
    `[rows, dim]`, the table as `optax.adam` would have it.

  Example:
    >>> optimizer = row_adam(0.1)
    >>> table, none = jnp.ones((2, 1)), jnp.zeros((0, 1))
    >>> state = optimizer.init(table)
    >>> one = jnp.array([1])
    >>> table, state = optimizer.update(jnp.ones((1, 1)), state, table, one)
    >>> table, state = optimizer.update(none, state, table, one[:0])
    >>> applied = apply_pending_rows(table, state)
    >>> print(f'pending: {table[1, 0]:.4f}, applied: {applied[1, 0]:.4f}')
    pending: 0.9000, applied: 0.8330
  """
  # In blocks, so that temporary arrays are as large as a block, not the table.
  size = min(len(table), 16_384)
  ids = jnp.arange(math.ceil(len(table) / size) * size).reshape(-1, size)
  blocks = lax.map(functools.partial(_gather, table, state), ids)
  return blocks.reshape(-1, table.shape[1])[: len(table)]


def _init(
  settings: tuple[float, ...], terms: int, table: Table
) -> RowAdamState:
  settings = AdamSettings(*(jnp.float32(value) for value in settings))
  count = jnp.zeros([], jnp.int32)
  to_come = _to_come(settings, terms, count)
  return RowAdamState(
    mu=jnp.zeros_like(table),
    nu=jnp.zeros_like(table),
    last=jnp.zeros(len(table), jnp.int32),
    to_come=jnp.tile(to_come, (len(table), 1)),
    to_come_now=to_come,
    count=count,
    settings=settings,
  )


def _gather(table: Table, state: RowAdamState, ids: Ids) -> Rows:
  return _up_to_date(table, state, ids).table


def _update(
  terms: int,
  gradients: Rows,
  state: RowAdamState,
  table: Table,
  ids: Ids,
  *,
  where: Bool[ArrayLike, ''] = True,
) -> tuple[Table, RowAdamState]:
  """One step of Adam, with the order of operations of `optax.adam`."""
  settings = state.settings
  ids = jnp.where(where, ids, len(table))
  rows = _up_to_date(table, state, ids)
  count = state.count + jnp.asarray(where, jnp.int32)
  state = state._replace(
    count=count, to_come_now=_to_come(settings, terms, count)
  )
  mu = settings.new1 * gradients + settings.b1 * rows.mu
  nu = settings.new2 * gradients**2 + settings.b2 * rows.nu
  mu_hat = mu / (1 - settings.b1**count)
  nu_hat = nu / (1 - settings.b2**count)
  step = _ratio(mu_hat, jnp.sqrt(nu_hat) + settings.eps)
  new = rows.table - settings.learning_rate * step
  return _write(table, state, ids, rows._replace(table=new, mu=mu, nu=nu))


def _up_to_date(table: Table, state: RowAdamState, ids: Ids) -> _Rows:
  """Gathers rows and applies all their pending updates at once."""
  rows = jax.tree.map(
    lambda array: array.at[ids].get(mode='fill', fill_value=0),
    _Rows(table, state.mu, state.nu, state.last, state.to_come),
  )
  learning_rate, b1, b2, eps, *_ = state.settings
  missed = (state.count - rows.last)[:, None]
  rest = _decays(state.settings)[None] ** missed * state.to_come_now[None]
  sum_0, sum_1, sum_2 = jnp.split(rows.to_come - rest, 3, axis=1)
  low, high = eps * _ratio(sum_1, sum_0), eps * _ratio(sum_2, sum_1)
  root = jnp.sqrt(rows.nu)
  eps = _ratio(root * high + low * low, root + low)
  step = sum_1 * _ratio(rows.mu, root + eps)
  return rows._replace(
    table=rows.table - learning_rate * step,
    mu=b1**missed * rows.mu,
    nu=b2**missed * rows.nu,
  )


def _write(
  table: Table, state: RowAdamState, ids: Ids, rows: _Rows
) -> tuple[Table, RowAdamState]:
  """Writes rows that have all updates up to the state's step."""
  # All written values depend formally on values that were read. So XLA knows
  # that reading precedes writing, and does not copy the arrays.
  last = jnp.maximum(rows.last, state.count)
  is_now = (last == state.count)[:, None]
  to_come = jnp.where(is_now, state.to_come_now[None], rows.to_come)
  rows = rows._replace(last=last, to_come=to_come)
  new = jax.tree.map(
    lambda array, values: array.at[ids].set(values, mode='drop'),
    _Rows(table, state.mu, state.nu, state.last, state.to_come),
    rows,
  )
  return new.table, state._replace(
    mu=new.mu, nu=new.nu, last=new.last, to_come=new.to_come
  )


def _to_come(
  settings: AdamSettings, terms: int, count: Int[Array, '']
) -> Float[Array, '3']:
  """The sums A_0, A_1 and A_2 of `row_adam`, from step `count` to infinity."""
  missed = jnp.arange(1, terms + 1)
  then = count + missed
  c2 = 1 - settings.b2**then
  c = jnp.stack([jnp.ones_like(c2), jnp.sqrt(c2), c2])
  c = c / (1 - settings.b1**then)[None]
  return jnp.sum(_decays(settings)[:, None] ** missed[None] * c, axis=1)


def _decays(settings: AdamSettings) -> Float[Array, '3']:
  """The decay of A_0, A_1 and A_2 in a step without a gradient."""
  b1, b2 = settings.b1, settings.b2
  return jnp.stack([b1, b1 / jnp.sqrt(b2), b1 / b2])


def _ratio(
  above: Float[Array, '...'], below: Float[Array, '...']
) -> Float[Array, '...']:
  """`above / below`; 0 where `below` is 0, since `above` is then 0 too."""
  return above / jnp.where(below > 0, below, 1)
