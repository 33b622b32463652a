"""Batches made ahead of the steps that take them."""

import collections
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Prefetch(Iterator):
  """Makes the next batches in a thread while the devices are at work.

  A batch is a function of its step alone, so the thread changes neither what
  comes nor in which order. To be closed, which ends the thread.

  Args:
    make: step -> batch. What it raises is raised where its batch is asked for.
    steps: whose batches are wanted, in this order.
    ahead: how many batches are made, or being made, before they are asked for.

  Attributes:
    waited: seconds that whoever asked has waited for a batch so far.

  Example:
    >>> import contextlib
    >>> batches = Prefetch(lambda step: step * 10, range(3))
    >>> with contextlib.closing(batches):
    ...   list(batches)
    [0, 10, 20]
  """

  def __init__(
    self, make: Callable[[int], Any], steps: Iterable[int], *, ahead: int = 2
  ):
    self.waited = 0.0
    self._make, self._steps = make, iter(steps)
    self._pool = ThreadPoolExecutor(1, thread_name_prefix='prefetch')
    self._made: collections.deque[Future] = collections.deque()
    self._start(ahead)

  def __next__(self) -> Any:
    if not self._made:
      raise StopIteration
    asked = time.monotonic()
    batch = self._made.popleft().result()
    self.waited += time.monotonic() - asked
    self._start(1)
    return batch

  def _start(self, count: int) -> None:
    for step in itertools.islice(self._steps, count):
      self._made.append(self._pool.submit(self._make, step))

  def close(self) -> None:
    """Makes no more batches, and waits for the one being made."""
    self._made.clear()
    self._pool.shutdown(cancel_futures=True)
