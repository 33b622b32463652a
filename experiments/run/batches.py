"""The batches of a run, made before the devices need them."""

import collections
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.prepared.batches import batch_at, steps_per_epoch
from adaptssr_jax.training.devices import shard_batch

# The number of batches that are made in advance.
_AHEAD = 2


class Batches(NamedTuple):
  """The batches of some users; each is a function of its step alone."""

  users: UserArrays
  batch_size: int  # users of a batch, over all devices
  length: int  # to which the behaviours of a user are cut or padded
  seed: int | None = None  # of the order of users; None: the stored order
  window: str = 'last'  # the behaviours of a longer history: last or random

  @property
  def steps_per_epoch(self) -> int:
    """The number of batches in which each user is used once."""
    return steps_per_epoch(len(self.users.items), self.batch_size)

  def at(self, step: int) -> dict[str, np.ndarray]:
    """This process's part of the batch of a step in NumPy, see `batch_at`."""
    return batch_at(
      self.users,
      step,
      batch_size=self.batch_size,
      length=self.length,
      num_devices=jax.device_count(),
      part=(jax.process_index(), jax.process_count()),
      seed=self.seed,
      window=self.window,
    )

  def on_devices(self, step: int) -> dict[str, jax.Array]:
    """This process's part of the batch of a step, on its devices."""
    return _to_devices(self.at(step))

  def prefetched(self, steps: range) -> 'Prefetch':
    """The batches of these steps, prefetched to the devices."""
    return Prefetch(self.at, steps, to_devices=_to_devices)


class Prefetch(Iterator):
  """An iterator that makes the next batches in a background thread.

  A batch is a function of its step, so the thread changes neither the batches
  nor their order. Call `close` to end the thread.

  Args:
    make: step -> batch. Its exceptions are raised by the `next` that would
      return the batch.
    steps: the steps whose batches are made, in order.
    to_devices: moves a batch to the devices; the thread waits for the transfer.

  Attributes:
    waited: seconds that `next` has waited for `make`, without the time in
      `to_devices`, which may wait for a running step.
  """

  def __init__(
    self,
    make: Callable[[int], Any],
    steps: Iterable[int],
    *,
    to_devices: Callable[[Any], Any] | None = None,
  ):
    self.waited = 0.0
    self._make, self._to_devices, self._steps = make, to_devices, iter(steps)
    self._pool = ThreadPoolExecutor(1, thread_name_prefix='prefetch')
    self._made: collections.deque[Future] = collections.deque()
    self._start(_AHEAD)

  def __next__(self) -> Any:
    if not self._made:
      raise StopIteration
    asked = time.monotonic()
    batch, made = self._made.popleft().result()
    self.waited += max(0.0, made - asked)
    self._start(1)
    return batch

  def _start(self, count: int) -> None:
    for step in itertools.islice(self._steps, count):
      self._made.append(self._pool.submit(self._prepared, step))

  def _prepared(self, step: int) -> tuple[Any, float]:
    batch, made = self._make(step), time.monotonic()
    return (self._to_devices(batch) if self._to_devices else batch), made

  def close(self) -> None:
    """Makes no more batches, and waits for the one being made."""
    self._made.clear()
    self._pool.shutdown(cancel_futures=True)


def _to_devices(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  # Otherwise the dispatch of the step would wait for the transfer.
  return jax.block_until_ready(shard_batch(batch))


def batches_in_order(
  users: UserArrays, *, batch_size: int, length: int
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
  """The batches of one pass over a split, in the stored order.

  Yields:
    This process's part of a batch in NumPy; and the rows of the split that are
    the users of the whole batch, int [users]. Later rows of it are padding.
  """
  stored, total = Batches(users, batch_size, length), len(users.items)
  steps = range(stored.steps_per_epoch)
  with contextlib.closing(Prefetch(stored.at, steps)) as batches:
    for step, batch in enumerate(batches):
      begin = step * batch_size
      yield batch, np.arange(begin, min(begin + batch_size, total))


def outputs_in_order(
  step: Callable[[dict[str, Any]], Any],
  users: UserArrays,
  *,
  batch_size: int,
  length: int,
) -> Iterator[tuple[np.ndarray, Any]]:
  """Runs a step on every batch of one pass over a split, in the stored order.

  Args:
    step: batch -> arrays [users, ...], for the users of all devices.

  Yields:
    The rows of the split that are the users of a batch, and the outputs for
    them as NumPy arrays, without those for padding.
  """
  before = None
  for batch, rows in batches_in_order(
    users, batch_size=batch_size, length=length
  ):
    after = rows, step(batch)
    # The devices compute this batch while the one before is read.
    if before is not None:
      yield _on_host(*before)
    before = after
  if before is not None:
    yield _on_host(*before)


def _on_host(rows: np.ndarray, outputs: Any) -> tuple[np.ndarray, Any]:
  return rows, jax.tree.map(lambda x: np.asarray(x)[: len(rows)], outputs)
