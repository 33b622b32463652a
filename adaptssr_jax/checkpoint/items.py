"""Reading the items of a checkpoint with Orbax.

Each process reads by itself and waits for no other, so that what goes wrong in
one is an error there and leaves none of them waiting.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from adaptssr_jax.checkpoint import files
from adaptssr_jax.checkpoint.description import Description
from adaptssr_jax.checkpoint.files import CheckpointError, DamagedError


@contextlib.contextmanager
def open_reader(folder: pathlib.Path) -> Iterator[ocp.CheckpointManager]:
  """Opens a folder of checkpoints to read; `DamagedError` if that fails."""
  with files.reading(folder):
    manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        read_only=True,
        lightweight_initialize=True,
        multiprocessing_options=_alone(),
      ),
    )
  with manager:
    yield manager


def _alone() -> ocp.options.MultiprocessingOptions:
  process = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=process,
    active_processes={process},
    barrier_sync_key_prefix=f'process{process}',
  )


def read_items(
  manager: ocp.CheckpointManager, step: int, items: dict[str, Any]
) -> Any:
  """Reads items by name, each as Orbax's arguments say."""
  with files.reading(pathlib.Path(manager.directory) / str(step)):
    return manager.restore(step, args=ocp.args.Composite(**items))


def read_description(manager: ocp.CheckpointManager, step: int) -> Description:
  """What the checkpoint of a step says of itself."""
  items = {name: ocp.args.JsonRestore() for name in Description._fields}
  return Description(**read_items(manager, step, items))


def saved_shapes(
  manager: ocp.CheckpointManager, step: int, item: str, device: Any
) -> Any:
  """What was saved of an item, as it is to be restored onto a device."""
  folder = pathlib.Path(manager.directory) / str(step) / item
  handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
  with files.reading(folder.parent):
    saved = handler.metadata(folder)
  if saved is None:
    raise DamagedError(folder.parent, f'its {item} is missing or unreadable')
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    saved.tree,
  )


def check_shapes(
  manager: ocp.CheckpointManager, step: int, wanted: dict[str, Any]
) -> None:
  """Raises `CheckpointError` where other shapes were saved."""
  rows = read_description(manager, step).encoder['num_items'] + 2
  for item, tree in wanted.items():
    saved = saved_shapes(manager, step, item, None)
    path = pathlib.Path(manager.directory) / str(step) / item
    files.refuse_other_shapes(path, saved, tree, rows=rows)


def saving_together() -> ocp.options.AsyncOptions:
  """How processes save together: one that fails leaves at once.

  Else it would wait for the others, who wait for it, until Orbax gives up.
  """
  return ocp.options.AsyncOptions(
    barrier_sync_fn=_barrier if jax.process_count() > 1 else None
  )


def _barrier(*, key: str, timeout_ms: int) -> None:
  # Orbax meets the others also while an error is on its way.
  error = sys.exception()
  if error is not None:
    raise error
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def latest_and_best(keep: int) -> Any:
  """Which checkpoints Orbax keeps: so many of the latest, and the best."""
  policy = ocp.checkpoint_managers
  return policy.AnyPreservationPolicy(
    [
      policy.LatestN(keep),
      policy.BestN(
        n=1, get_metric_fn=files.rank, keep_checkpoints_without_metrics=False
      ),
    ]
  )


@contextlib.contextmanager
def open_at(
  path: str | pathlib.Path,
) -> Iterator[tuple[ocp.CheckpointManager, int]]:
  """Opens the checkpoints at a path, and says which one is meant."""
  folder, step = files.find(path)
  # Of one that is named, no score is asked for.
  if step is None:
    step = files.best_of(folder)
  with open_reader(folder) as manager:
    if manager.latest_step() is None:
      raise CheckpointError(
        f'{path}: holds no checkpoint; give the workdir of a run that has '
        'saved one'
      )
    yield manager, manager.latest_step() if step is None else step
