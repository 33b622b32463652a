"""What a run needs, estimated without a run: `--plan`.

  python -m experiments.pretrain --flagfile=FLAGS --plan
  python -m experiments.pretrain --flagfile=FLAGS --plan --plan_devices=64

The step is compiled as training compiles it, for shapes in place of arrays: a
table need not fit into this machine's memory to be planned.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.data.prepared.batches import steps_per_epoch
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.step import TrainState, pmap_step
from experiments.flags.binder import SettingsError
from experiments.flags.shared import PlanSettings
from experiments.planning.counting import flops_of, program_shares, sent_of
from experiments.planning.report import Plan, report
from experiments.run.batches import steps_of_run, training_batch
from experiments.run.process import print_result_line


def check_plan(settings: PlanSettings, *, source: str) -> None:
  """Raises `SettingsError` where the flags of `--plan` cannot be met."""
  if settings.plan_items and source:
    raise SettingsError(
      f'--plan_items does not go with a start from {source}, which knows items '
      'by their names: leave out either'
    )
  devices = jax.device_count()
  if settings.plan_devices not in (0, devices):
    raise SettingsError(
      f'--plan_devices={settings.plan_devices}: JAX has begun with {devices}, '
      'and the number is set before it begins'
    )


def plan_run(
  settings: PlanSettings,
  data: UserData,
  users: UserArrays,
  step: Callable,
  state: TrainState,
  *,
  length: int,
  buckets: Buckets,
  encoded: np.ndarray,
  sequences: int,
  longest: int | None = None,
) -> Plan:
  """Compiles the step of a run, and prints what it needs.

  Args:
    encoded: how long these are, a sample.
    sequences: that are encoded of a user.
    longest: of the sequences that are encoded [length].
  """
  devices = jax.device_count()
  batch = training_batch(users, 0, settings=settings, length=length)
  key = jax.eval_shape(jax.random.key, settings.seed)
  step_fn = pmap_step(step, num_replicated_args=1, donate=True)
  compiled = step_fn.lower(state, batch, key).compile()
  memory = compiled.memory_analysis()
  traced = jax.make_jaxpr(step_fn)(state, batch, key)
  shares = program_shares(
    encoded,
    rows=sequences * settings.batch_size // devices,
    buckets=buckets,
    length=longest or length,
  )
  last = np.eye(len(shares))[-1]
  plan = Plan(
    backend=jax.default_backend(),
    simulated=settings.plan_devices > 0,
    devices=devices,
    steps_per_epoch=steps_per_epoch(len(users.items), settings.batch_size),
    num_steps=steps_of_run(settings, users),
    batch_size=settings.batch_size,
    arguments=memory.argument_size_in_bytes,
    results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    flops=devices * flops_of(traced, shares=shares),
    most_flops=devices * flops_of(traced, shares=last),
    sent=sent_of(compiled.as_text(), devices=devices),
    **_sizes_of_data(settings, data, users),
    **_sizes_of_state(state),
  )
  print_result_line(report(plan))
  return plan


def shapes_of(make: Callable[..., tuple], *args: Any) -> tuple[Any, Any]:
  """What is made beside arrays, and the shapes of these; none is computed.

  Example:
    >>> shapes_of(lambda x: ('a column', x[:, 0]), np.ones((9, 2)))
    ('a column', ShapeDtypeStruct(shape=(9,), dtype=float32))
  """
  beside = []

  def make_arrays(*args: Any) -> Any:
    made, arrays = make(*args)
    beside.append(made)
    return arrays

  shapes = jax.eval_shape(make_arrays, *args)
  return beside[0], shapes


def _sizes_of_data(
  settings: PlanSettings, data: UserData, users: UserArrays
) -> dict[str, Any]:
  folder = pathlib.Path(settings.data_dir) / data.name
  files = (path for path in folder.rglob('*') if path.is_file())
  # What is mapped stays on disk.
  held = {
    id(array): array.nbytes
    for array in _arrays((data.splits, users))
    if not isinstance(array, np.memmap)
  }
  names = data.vocabulary.items
  items = settings.plan_items or len(names)
  # A reference, and a string.
  name = 8 + sum(map(sys.getsizeof, names)) / len(names)
  order = 2 * 8 * len(users.items)
  return {
    'dataset': data.name,
    'users': len(users.items),
    'behaviours': int(users.items.lengths.sum()),
    'items': items,
    'data_on_disk': sum(path.stat().st_size for path in files),
    'data_in_memory': sum(held.values()) + order + round(items * name),
  }


def _arrays(thing: Any) -> Iterator[np.ndarray]:
  """All arrays that columns of users hold, however deep."""
  if isinstance(thing, np.ndarray):
    yield thing
  elif isinstance(thing, dict):
    yield from _arrays(tuple(thing.values()))
  elif isinstance(thing, tuple):
    for part in thing:
      yield from _arrays(part)
  elif dataclasses.is_dataclass(thing):
    for field in dataclasses.fields(thing):
      yield from _arrays(getattr(thing, field.name))


def _sizes_of_state(state: TrainState) -> dict[str, int]:
  parameters, parameters_size = _size(state.params)
  table, table_size = _size(state.params['table'])
  return {
    'parameters': parameters,
    'parameters_size': parameters_size,
    'table': table,
    'table_size': table_size,
    'optimizer_size': _size(state.opt_state)[1],
  }


def _size(tree: Any) -> tuple[int, int]:
  """How many numbers the arrays of a tree hold, and their bytes."""
  arrays = jax.tree.leaves(tree)
  return (
    sum(x.size for x in arrays),
    sum(x.size * x.dtype.itemsize for x in arrays),
  )
