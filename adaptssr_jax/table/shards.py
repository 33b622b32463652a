"""Arrays whose rows are sharded over devices, in trees of replicated arrays."""

from typing import Any, NamedTuple, no_type_check

import jax
from jaxtyping import Array, Shaped


class Shards(NamedTuple):
  """An array whose rows are split over the devices of all processes.

  Args:
    rows: on the outside the parts of this process, [local_devices, rows, ...];
      inside a step those of one device, [rows, ...].
  """

  rows: Shaped[Array, '...']


# Not checked: asked of every node of a tree, several times a step.
@no_type_check
def is_shards(node: Any) -> bool:
  """Whether a node of a tree is split, for `is_leaf`."""
  return isinstance(node, Shards)


def partition(tree: Any) -> tuple[Any, Any]:
  """Splits a tree into its `Shards` and its replicated arrays."""
  shards = jax.tree.map(
    lambda x: x if is_shards(x) else None, tree, is_leaf=is_shards
  )
  whole = jax.tree.map(
    lambda x: None if is_shards(x) else x, tree, is_leaf=is_shards
  )
  return shards, whole


def combine(shards: Any, whole: Any) -> Any:
  """Undoes `partition`."""
  return jax.tree.map(
    lambda x, y: y if x is None else x,
    shards,
    whole,
    is_leaf=lambda node: node is None or is_shards(node),
  )


def rows_per_device(num_rows: int, num_devices: int) -> int:
  """The rows that each device holds of an array; the last ones may be void."""
  return -(-num_rows // num_devices)
