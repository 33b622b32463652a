"""Reading checkpoints by Orbax, and the description that each one holds.

Here "item" is Orbax's word for a named part of a checkpoint, not an item of the
catalogue. Each process reads without waiting for the others; `Checkpoints`
raises an error of one process in all of them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from adaptssr_jax.checkpoint import files
from adaptssr_jax.checkpoint.files import DamagedError
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.errors import CheckpointError
from adaptssr_jax.table.shards import rows_per_device


class Description(NamedTuple):
  """The contents of a checkpoint other than the training state.

  Args:
    encoder: the fields of the `UserEncoder`.
    vocabulary: the raw item ids; that of item i is at index i - 1.
    flags: the settings of the run by name.
    labels: the names of the classes of a fine-tuned model; else empty.
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
  """Describes an encoder, its vocabulary and the flags of its run."""
  fields = {
    field.name: getattr(encoder, field.name)
    for field in dataclasses.fields(encoder)
    if field.name not in ('parent', 'name')
  }
  # Numbers of NumPy, such as the largest id of an array, are no JSON.
  fields = {
    name: value.item() if isinstance(value, np.generic) else value
    for name, value in fields.items()
  }
  return Description(fields, list(vocabulary), dict(flags), list(labels or []))


def _this_process() -> ocp.options.MultiprocessingOptions:
  process = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=process,
    active_processes={process},
    barrier_sync_key_prefix=f'process{process}',
  )


def read_items(path: pathlib.Path, items: dict[str, Any]) -> Any:
  """Reads items of a checkpoint; `items` has Orbax's arguments by name."""
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(
      multiprocessing_options=_this_process()
    )
  )
  with (
    files.reading(path),
    ocp.Checkpointer(
      handler, multiprocessing_options=_this_process()
    ) as reader,
  ):
    return reader.restore(path, args=ocp.args.Composite(**items))


def read_description(path: pathlib.Path) -> Description:
  """Reads the description in a checkpoint."""
  items = {name: ocp.args.JsonRestore() for name in Description._fields}
  return Description(**read_items(path, items))


def saved_shapes(path: pathlib.Path, item: str, sharding: Any) -> Any:
  """The shapes of a saved item, with the sharding to restore it with."""
  handler = ocp.StandardCheckpointHandler(
    multiprocessing_options=_this_process()
  )
  with files.reading(path):
    saved = handler.metadata(path / item)
  if saved is None:
    raise DamagedError(path, f'its {item} is missing or unreadable')
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    saved.tree,
  )


def check_shapes(path: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Raises `CheckpointError` if arrays of other shapes were saved.

  Args:
    path: the folder of the checkpoint.
    wanted: for each item, arrays or shapes of the model that is to be restored.
      Its item table may have padding rows.
  """
  rows = read_description(path).encoder['num_items'] + 2
  devices = jax.device_count()
  padded = devices * rows_per_device(rows, devices)
  for item, tree in wanted.items():
    saved = shapes_by_path(saved_shapes(path, item, None))
    for name, shape in shapes_by_path(tree).items():
      found = saved.get(name)
      if found != shape and not (
        found
        and 'table' in name.split('.')
        and found[1:] == shape[1:]
        and found[0] >= rows
        and shape[0] in (rows, padded)
      ):
        raise CheckpointError(
          f'{path}: of another model: its {item}.{name} is '
          f'{found or "missing"}, not {shape}. Choose another --workdir'
        )


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
  """The shapes of the arrays of a tree, by names such as `norm.scale`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
