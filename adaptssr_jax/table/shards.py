"""Arrays whose rows are sharded over devices, in trees of replicated arrays."""

from typing import Any, NamedTuple, no_type_check

import jax
from jaxtyping import Array, Shaped


class Shards(NamedTuple):
  """An array whose rows are sharded over the devices of all processes.

  Args:
    rows: outside of a step the shards of this process, [local_devices, rows,
      ...]; inside a step the shard of one device, [rows, ...].
  """

  rows: Shaped[Array, '...']


# Types are not checked, since it is called for each node of a tree.
@no_type_check
def is_shards(node: Any) -> bool:
  """Whether a node of a tree is `Shards`; for `is_leaf`."""
  return isinstance(node, Shards)


def partition(tree: Any) -> tuple[Any, Any]:
  """Splits a tree into its `Shards` and its replicated arrays."""
  shards = jax.tree.map(
    lambda x: x if is_shards(x) else None, tree, is_leaf=is_shards
  )
  replicated = jax.tree.map(
    lambda x: None if is_shards(x) else x, tree, is_leaf=is_shards
  )
  return shards, replicated


def combine(shards: Any, replicated: Any) -> Any:
  """The inverse of `partition`."""
  return jax.tree.map(
    lambda x, y: y if x is None else x,
    shards,
    replicated,
    is_leaf=lambda node: node is None or is_shards(node),
  )


def local_rows(tree: Any) -> Any:
  """A tree with the array of each `Shards` in its place."""
  return jax.tree.map(
    lambda x: x.rows if is_shards(x) else x, tree, is_leaf=is_shards
  )


def rows_per_device(num_rows: int, num_devices: int) -> int:
  """Rows on each device; those of the last devices may be padding."""
  return -(-num_rows // num_devices)
