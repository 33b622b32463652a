"""Times the exchange of rows of a sharded table, by all-to-all and all-gather.

  JAX_NUM_CPU_DEVICES=8 python docs/results/row_exchange.py

Each device fetches 6,400 rows of 64 numbers, and returns their gradients. Rows
that are spread over all devices are requested by an all-to-all. If all are on
one device, the requests exceed the capacity, and an all-gather serves them.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from adaptssr_jax.table.exchange import fetch_rows, gather_gradients

DIM, IDS, ROUNDS, CALLS = 64, 6_400, 3, 5
DEVICES = jax.device_count()
# Those of each device; 646,000 in all.
ROWS = 646_000 // DEVICES
AXIS = 'devices'


def exchange(
  table: Float[Array, 'rows dim'], ids: Int[Array, ' ids']
) -> tuple[Array, Array]:
  """Fetches rows, and returns them as their gradients."""

  def read(rows: Int[Array, ' ids']) -> Float[Array, 'ids dim']:
    return table.at[rows].get(mode='fill', fill_value=0)

  rows = fetch_rows(read, ids, num_rows=ROWS, axis_name=AXIS)
  return gather_gradients(rows, ids, num_rows=ROWS, axis_name=AXIS)


def draw(highest: int) -> np.ndarray:
  """Draws distinct ids below `highest` for each device, in ascending order."""
  rng = np.random.default_rng(0)
  ids = [rng.choice(highest, IDS, replace=False) for _ in range(DEVICES)]
  return np.sort(ids).astype(np.int32)


def main() -> None:
  """Prints the median time of each, in turn."""
  step = jax.pmap(exchange, axis_name=AXIS)
  # Made where it is used, so that no step copies it.
  table = jax.pmap(lambda _: jnp.ones((ROWS, DIM)))(jnp.arange(DEVICES))
  batches = {'all-to-all': draw(DEVICES * ROWS), 'all-gather': draw(ROWS)}
  for ids in batches.values():
    jax.block_until_ready(step(table, ids))
  for _ in range(ROUNDS):
    for name, ids in batches.items():
      seconds = []
      for _ in range(CALLS):
        begin = time.perf_counter()
        jax.block_until_ready(step(table, ids))
        seconds.append(time.perf_counter() - begin)
      print(f'{name}: {1000 * statistics.median(seconds):.0f} ms')


if __name__ == '__main__':
  main()
