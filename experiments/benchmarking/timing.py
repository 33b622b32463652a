"""Times steps; without JAX, so that a Python with PyTorch can do it too."""

import time
from collections.abc import Callable
from typing import Any

# Seconds after which timing stops, once at least AT_LEAST steps are timed.
ENOUGH, AT_LEAST = 20.0, 3


def timed(
  work: Callable[[int], Any],
  starts: range,
  *,
  warm_up: int,
  clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
  """Times `work` at each start, and returns the seconds after the warm-up."""
  seconds = []
  for start in starts:
    began = clock()
    work(start)
    seconds.append(clock() - began)
    later = seconds[warm_up:]
    if len(later) >= AT_LEAST and sum(later) > ENOUGH:
      break
  return seconds[warm_up:]
