"""Reading the items of a checkpoint with Orbax."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from adaptssr_jax import checkpoint_files as files
from adaptssr_jax.checkpoint_files import DamagedError
from adaptssr_jax.description import Description


def open_manager(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
  """Opens a folder of checkpoints; `DamagedError` if that fails."""
  with files.reading(folder):
    return ocp.CheckpointManager(
      folder, options=ocp.CheckpointManagerOptions(**options)
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
  with ocp.StandardCheckpointer() as reader, files.reading(folder.parent):
    saved = reader.metadata(folder).item_metadata
  if saved is None:
    raise DamagedError(folder.parent, f'its {item} is missing or unreadable')
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    saved.tree,
  )
