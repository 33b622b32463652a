"""What this machine can do in a second, of what it does best."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def product_rate(
  dtype: str, *, clock: Callable[[], float] = time.perf_counter
) -> float:
  """Operations a second of one large matrix product, of all devices together.

  Args:
    dtype: of the matrices.
    clock: tells the seconds.
  """
  size = 2048 if jax.default_backend() == 'cpu' else 8192
  matrix = jnp.ones((size, size), dtype)
  rate = _times_a_second(jnp.matmul, matrix, matrix, clock=clock)
  return 2 * size**3 * rate


def best_rates(dtype: str) -> tuple[float, float]:
  """Operations of products, and bytes, a second of one device at best.

  The quickest of many short ones, between which other programs may come: of
  products, and of passes that read and write an array in place.

  Args:
    dtype: of the products.
  """
  on_cpu = jax.default_backend() == 'cpu'
  matrix = jnp.ones([512 if on_cpu else 8192] * 2, dtype)
  numbers = jnp.ones(2**23 if on_cpu else 2**26)
  best = functools.partial(_times_a_second, choose=min, repeats=50)
  products = 2 * len(matrix) ** 3 * best(jnp.matmul, matrix, matrix)
  memory = 2 * numbers.nbytes * best(jnp.negative, numbers, in_place=True)
  devices = jax.local_device_count()
  return products / devices, memory / devices


def _times_a_second(
  function: Callable[..., jax.Array],
  *args: jax.Array,
  choose: Callable[[Sequence[float]], float] = statistics.median,
  repeats: int = 7,
  in_place: bool = False,
  clock: Callable[[], float] = time.perf_counter,
) -> float:
  """How often all devices do something, by the median time or another."""
  run = jax.jit(function, donate_argnums=(0,) if in_place else ())
  seconds = []
  for _ in range(repeats + 1):
    began = clock()
    done = jax.block_until_ready(run(*args))
    args = (done,) if in_place else args
    seconds.append(clock() - began)
  # One device of a CPU works on all cores.
  count = jax.local_device_count() if jax.default_backend() != 'cpu' else 1
  return count / choose(seconds[1:])
