"""Items drawn from the softmax over all items, wherever the table is."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax.ops.item_draws import draw_ids
from adaptssr_jax.table.lookup import BatchRows, SplitTable, Table, look_up

# Scores that are computed at once of each state. What is drawn depends on it,
# so that it may not depend on how many states a device has.
_CHUNK = 8192


def draw_items(
  table: Table,
  bias: Float[Array, ' ids'],
  hidden: Float[Array, 'n dim'],
  keys: Key[Array, ' n'],
  *,
  sampled: Int[Array, ' m'] | None = None,
) -> Int[Array, ' n']:
  """An item for each state, drawn from softmax(E h + b) without padding.

  Args:
    table: the item table, E.
    bias: b, [ids].
    hidden: the states, h, [n, dim].
    keys: of each state, [n].
    sampled: ids, drawn evenly, [m]; given, the softmax is that over them alone,
      so that the rows of what is drawn are among those of the batch.

  Returns:
    The items, [n]; 0 only if nothing but padding was sampled.

  Raises:
    ValueError: If not every row of the table is there and no ids are sampled.
  """
  # Padding is no item.
  bias = bias.at[0].set(jnp.finfo(bias.dtype).min)
  if sampled is not None:
    rows = look_up(table, sampled)
    places = draw_ids(keys, hidden, rows, bias[sampled], chunk_size=_CHUNK)
    return sampled[places]
  if isinstance(table, BatchRows | SplitTable):
    raise ValueError(
      'an item drawn from all of them may be one whose row is not there: draw '
      'it from sampled items, or let every device have the whole table'
    )
  return draw_ids(keys, hidden, table[: len(bias)], bias, chunk_size=_CHUNK)
