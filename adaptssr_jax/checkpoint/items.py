"""The items of a checkpoint: what it says of itself, and reading it by Orbax.

Each process reads by itself and waits for no other, so that what goes wrong in
one is an error there and leaves none of them waiting.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from adaptssr_jax.checkpoint import files
from adaptssr_jax.checkpoint.files import CheckpointError, DamagedError
from adaptssr_jax.encoder.model import UserEncoder


class Description(NamedTuple):
  """What a checkpoint says of itself, beside the state of training.

  Args:
    encoder: the fields of the `UserEncoder`.
    vocabulary: the raw item ids, that of item i at i - 1.
    flags: the settings of the run by name.
    labels: the names of the classes, of a fine-tuned model.
  """

  encoder: Mapping[str, Any]
  vocabulary: list[str]
  flags: Mapping[str, Any]
  labels: list[str]


def describe(
  encoder: UserEncoder,
  vocabulary: list[str],
  flags: Mapping[str, Any],
  labels: list[str] | None = None,
) -> Description:
  """The description of an encoder on a vocabulary."""
  fields = {
    field.name: getattr(encoder, field.name)
    for field in dataclasses.fields(encoder)
    if field.name not in ('parent', 'name')
  }
  return Description(fields, list(vocabulary), dict(flags), list(labels or []))


def _alone() -> ocp.options.MultiprocessingOptions:
  process = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=process,
    active_processes={process},
    barrier_sync_key_prefix=f'process{process}',
  )


def read_items(path: pathlib.Path, items: dict[str, Any]) -> Any:
  """Reads items of a checkpoint by name, each as Orbax's arguments say."""
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=_alone())
  )
  with (
    files.reading(path),
    ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader,
  ):
    return reader.restore(path, args=ocp.args.Composite(**items))


def read_description(path: pathlib.Path) -> Description:
  """What a checkpoint says of itself."""
  items = {name: ocp.args.JsonRestore() for name in Description._fields}
  return Description(**read_items(path, items))


def saved_shapes(path: pathlib.Path, item: str, device: Any) -> Any:
  """What was saved of an item, as it is to be restored onto a device."""
  handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
  with files.reading(path):
    saved = handler.metadata(path / item)
  if saved is None:
    raise DamagedError(path, f'its {item} is missing or unreadable')
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    saved.tree,
  )


def check_shapes(path: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Raises `CheckpointError` where other shapes were saved."""
  rows = read_description(path).encoder['num_items'] + 2
  for item, tree in wanted.items():
    saved = saved_shapes(path, item, None)
    files.refuse_other_shapes(path / item, saved, tree, rows=rows)


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


def checkpoint_at(path: str | pathlib.Path) -> pathlib.Path:
  """The folder of the checkpoint that is meant by a path."""
  folder, step = files.find(path)
  # Of one that is named, no score is asked for.
  if step is None:
    step = files.best_of(folder)
  if step is None:
    step = max(files.saved_steps(folder), default=None)
  if step is None:
    raise CheckpointError(
      f'{path}: holds no checkpoint; give the workdir of a run that has saved '
      'one'
    )
  return folder / str(step)
