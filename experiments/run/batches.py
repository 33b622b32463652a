"""The batches of a run, made ready ahead of the devices."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.prepared.batches import (
  batch_at,
  steps_per_epoch,
)
from adaptssr_jax.training.devices import shard_batch
from experiments.flags.shared import RunSettings
from experiments.run.prefetch import Prefetch


def training_batches(
  users: UserArrays, settings: RunSettings, length: int, steps: range
) -> Prefetch:
  """The batches of these steps, made ahead and put on the devices."""
  make = functools.partial(
    training_batch, users, settings=settings, length=length
  )
  return Prefetch(make, steps)


def training_batch(
  users: UserArrays, step: int, *, settings: RunSettings, length: int
) -> dict[str, jax.Array]:
  """This process's part of the batch of a step, on its devices."""
  batch = batch_at(
    users,
    step,
    batch_size=settings.batch_size,
    length=length,
    num_devices=jax.device_count(),
    seed=settings.seed,
    window=settings.window,
    part=(jax.process_index(), jax.process_count()),
  )
  # Moved before the step is dispatched, which would wait for it.
  return jax.block_until_ready(shard_batch(batch))


def batches_in_order(
  users: UserArrays, settings: RunSettings, length: int
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
  """The batches of one pass over a split, in the stored order.

  Yields:
    This process's part of a batch, of NumPy, and the rows of the split that are
    the users of the whole batch: what comes after them is padding.
  """
  make = functools.partial(
    batch_at,
    users,
    batch_size=settings.batch_size,
    length=length,
    num_devices=jax.device_count(),
    seed=None,
    part=(jax.process_index(), jax.process_count()),
  )
  size, total = settings.batch_size, len(users.items)
  steps = range(steps_per_epoch(total, size))
  with contextlib.closing(Prefetch(make, steps)) as batches:
    for step, batch in enumerate(batches):
      yield batch, np.arange(step * size, min((step + 1) * size, total))
