"""Placement of arrays: replicated on every device, or sharded over devices.

With several processes, each process holds the arrays of its own devices; the
collectives of a step span all processes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import (
  Mesh,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from adaptssr_jax.table.shards import Shards, is_shards, rows_per_device

AXIS = 'devices'
# Parts of error messages of a process that waits for one that has ended.
_LOST = (
  'Gloo',
  'NCCL',
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
  'Barrier failed',
  'coordination service',
)


def is_of_lost_process(error: BaseException) -> bool:
  """Whether an error means that another process cannot be reached.

  JAX and Orbax raise errors of several types for it.

  Example:
    >>> is_of_lost_process(ValueError('UNKNOWN: Gloo AllGather failed: reset'))
    True
  """
  texts = f'{error} {error.__cause__}'
  return any(word in texts for word in _LOST)


def host_device() -> jax.Device:
  """A CPU device; the first local device if JAX has no CPU backend."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return jax.local_devices()[0]


def shard(array: Shaped[ArrayLike, 'rows ...']) -> Shards:
  """Shards an array over the devices of all processes, padded with zeros.

  Args:
    array: `[rows, ...]`, the same in every process. Each device is sent only
      its own shard, from the device of the array.

  Returns:
    The shards of this process, on its devices.

  Example:
    >>> shard(jnp.ones((3, 2))).rows[:, :, 0].sum()
    Array(3., dtype=float32)
  """
  array = jnp.asarray(array)
  rows = rows_per_device(len(array), jax.device_count())
  local = jax.local_device_count()
  first = jax.process_index() * local * rows
  part = array[first : first + local * rows]
  filled = jnp.pad(
    part, ((0, local * rows - len(part)), *((0, 0),) * (array.ndim - 1))
  )
  return shard_batch(Shards(filled.reshape(local, rows, *array.shape[1:])))


def init_in_parts(
  init: Callable[..., dict[str, Any]], *args: Any
) -> dict[str, Any]:
  """Initialises a model whose item table is sharded from the start.

  Args:
    init: returns the parameters, with a `table` [rows, dim].
    *args: arguments of `init`, the same in every process.

  Returns:
    The parameters of `init(*args)`, with `Shards` as the table. Each device
    computes its own rows, so that no device ever holds the whole table.
  """
  shapes = jax.eval_shape(init, *args)
  num_rows, dim = shapes['table'].shape
  rows = rows_per_device(num_rows, jax.device_count())
  extra = rows * jax.device_count() - num_rows

  def padded_init(*args: Any) -> dict[str, Any]:
    params = init(*args)
    return params | {'table': jnp.pad(params['table'], ((0, extra), (0, 0)))}

  shardings = dict.fromkeys(shapes, _global_sharding())
  shardings['table'] = _global_sharding(AXIS)
  params = jax.jit(padded_init, out_shardings=shardings)(*args)
  part = jax.ShapeDtypeStruct(
    (jax.local_device_count(), rows, dim), shapes['table'].dtype
  )
  return to_local(params, shapes | {'table': Shards(part)})


def replicate(tree: Any) -> Any:
  """Replicates arrays on the local devices, with the sharding of `pmap_step`.

  `Shards` stay sharded. A first step on arrays of another sharding would be
  compiled twice, since its results have this one. Buffers may be shared with
  the originals; donating one invalidates the other.
  """
  return jax.tree.map(
    lambda x: (
      shard_batch(x) if is_shards(x) else jax.device_put(x, _local_sharding())
    ),
    tree,
    is_leaf=is_shards,
  )


def shard_batch(tree: Any) -> Any:
  """Places each part of a batch on its local device, as `pmap_step` expects.

  A step that is also called with NumPy batches is compiled a second time.

  Args:
    tree: arrays [local_devices, ...], usually of NumPy.

  Returns:
    The same arrays, each sharded along its first axis.
  """
  return jax.device_put(tree, _local_sharding(AXIS))


def to_global(tree: Any) -> Any:
  """Converts the arrays of this process to global arrays, as Orbax needs them.

  Args:
    tree: arrays on the local devices; with several processes, replicated as by
      `replicate`.

  Returns:
    The tree with an array [all rows, ...] in place of each `Shards`. With one
    process, an array that is replicated on several devices becomes its copy on
    one of them. No data is copied, except for the parts of `Shards`.
  """
  return jax.tree.map(_to_global, tree, is_leaf=is_shards)


def to_local(tree: Any, like: Any) -> Any:
  """The inverse of `to_global`.

  Args:
    tree: global arrays.
    like: a tree with `Shards` where the result has them, and elsewhere arrays,
      or shapes, with the sharding of the result.
  """
  return jax.tree.map(_to_local, like, tree, is_leaf=is_shards)


def global_shapes(tree: Any) -> Any:
  """The shapes and shardings of the arrays of `to_global(tree)`."""
  return jax.tree.map(_global_shape, tree, is_leaf=is_shards)


def _to_global(node: Any) -> Array:
  wanted = _global_shape(node)
  if is_shards(node):
    parts = [part.data[0] for part in node.rows.addressable_shards]
  elif jax.process_count() == 1:
    if not node.is_fully_replicated:
      return node
    (device,) = wanted.sharding.device_set
    copies = {copy.device: copy.data for copy in node.addressable_shards}
    return copies[device]
  else:
    parts = [part.data for part in node.addressable_shards]
  return jax.make_array_from_single_device_arrays(
    wanted.shape, wanted.sharding, parts
  )


def _to_local(like: Any, array: Array) -> Any:
  parts = [part.data for part in array.addressable_shards]
  if is_shards(like):
    parts = [part[None] for part in parts]
    return Shards(
      jax.make_array_from_single_device_arrays(
        like.rows.shape, _local_sharding(AXIS), parts
      )
    )
  if array.is_fully_addressable:
    return jax.device_put(array, like.sharding)
  return jax.make_array_from_single_device_arrays(
    like.shape, _local_sharding(), parts
  )


def _global_shape(node: Any) -> jax.ShapeDtypeStruct:
  if is_shards(node):
    _, rows, *shape = node.rows.shape
    shape, dtype = (jax.device_count() * rows, *shape), node.rows.dtype
    sharding = _global_sharding(AXIS)
  else:
    shape, dtype, sharding = node.shape, node.dtype, _global_sharding()
    if jax.process_count() == 1:
      # Arrays may be on any of its devices. Orbax would save and read a
      # replicated array in one part per device.
      sharding = node.sharding
      if sharding.is_fully_replicated:
        sharding = SingleDeviceSharding(
          min(sharding.device_set, key=lambda x: x.id)
        )
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _global_sharding(*axes: str) -> NamedSharding:
  # In the order of `jax.pmap`: the devices of a process are consecutive.
  devices = [
    device
    for process in range(jax.process_count())
    for device in jax.local_devices(process)
  ]
  return NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec(*axes))


def _local_sharding(*axes: str) -> NamedSharding:
  return NamedSharding(Mesh(jax.local_devices(), (AXIS,)), PartitionSpec(*axes))
