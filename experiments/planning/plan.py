"""Estimates what a run needs without running it: `--plan`.

  python -m experiments.pretrain --flagfile=FLAGS --plan
  python -m experiments.pretrain --flagfile=FLAGS --plan --plan_devices=64

The step is compiled as for training, but for shapes instead of arrays, so that
the item table need not fit into the memory of this machine.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptssr_jax.data import UserData
from adaptssr_jax.training.step import TrainState, pmap_step
from experiments.flags.binder import SettingsError
from experiments.flags.shared import PlanSettings
from experiments.planning.counting import flops_of, program_shares, sent_of
from experiments.run.process import print_result_line
from experiments.run.steps import Training


class Size(NamedTuple):
  """The size of a tree of arrays."""

  count: int  # elements of all arrays
  bytes: int  # their memory


@dataclasses.dataclass(frozen=True)
class Plan:
  """The resources that a run needs; memory is in bytes."""

  dataset: str
  backend: str  # the backend for which the step was compiled
  simulated: bool  # whether a CPU simulates the number of devices
  devices: int  # number of devices that share a batch
  users: int  # users of the training split
  behaviours: int  # behaviours of these users
  items: int  # items of the catalogue
  data_on_disk: int  # size of the prepared data set with all of its splits
  # Size of the data that is not memory-mapped: where each user begins, the
  # order of two epochs, and the names of the items.
  data_in_memory: int
  steps_per_epoch: int  # steps in which every user is used once
  num_steps: int  # steps of the run
  batch_size: int  # users of a step, on all devices
  # All parameters, including frozen ones and the padding of a sharded table.
  parameters: Size
  table: Size  # the parameters of the item table
  optimizer: Size  # the state of the optimizer
  arguments: int  # state and batch on one device
  results: int  # results on one device that do not reuse memory of arguments
  temporaries: int  # peak size of temporary arrays on one device
  flops: float  # operations of matrix products in a step, on all devices
  most_flops: float  # the same, if every sequence had the full length
  sent: Mapping[str, float]  # sent by a device in a step, by kind of collective

  @property
  def peak(self) -> int:
    """The memory of one device at the peak of a step."""
    return self.arguments + self.results + self.temporaries


def check_plan(settings: PlanSettings, *, source: str) -> None:
  """Raises `SettingsError` if the flags of `--plan` cannot be met."""
  if settings.plan_items and source:
    raise SettingsError(
      f'--plan_items does not go with a start from {source}, which knows items '
      'by their names: leave out either'
    )
  devices = jax.device_count()
  if settings.plan_devices not in (0, devices):
    raise SettingsError(
      f'--plan_devices={settings.plan_devices}: JAX has started with {devices} '
      'devices, and the number cannot be changed afterwards'
    )


def plan_run(
  settings: PlanSettings,
  data: UserData,
  make: Callable[[UserData, jax.Array], tuple[Training, TrainState]],
) -> Plan:
  """Compiles the step of a run, and prints the resources that it needs.

  Args:
    make: makes the run, and its initial state from a key. It is traced, so that
      the arrays of the state are never computed.
  """
  items = range(settings.plan_items) or data.vocabulary.items
  training, state = shapes_of(
    functools.partial(
      make, data._replace(vocabulary=data.vocabulary._replace(items=items))
    ),
    jax.random.key(settings.seed),
  )
  devices, batches = jax.device_count(), training.batches
  batch = batches.on_devices(0)
  key = jax.eval_shape(jax.random.key, settings.seed)
  step_fn = pmap_step(training.step, num_replicated_args=1, donate=True)
  compiled = step_fn.lower(state, batch, key).compile()
  memory = compiled.memory_analysis()
  traced = jax.make_jaxpr(step_fn)(state, batch, key)
  shares = program_shares(
    training.sequences, users=settings.batch_size // devices
  )
  last = np.eye(len(shares))[-1]
  plan = Plan(
    backend=jax.default_backend(),
    simulated=settings.plan_devices > 0,
    devices=devices,
    steps_per_epoch=batches.steps_per_epoch,
    num_steps=training.num_steps,
    batch_size=settings.batch_size,
    parameters=_size(state.params),
    table=_size(state.params['table']),
    optimizer=_size(state.opt_state),
    arguments=memory.argument_size_in_bytes,
    results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    flops=devices * flops_of(traced, shares=shares),
    most_flops=devices * flops_of(traced, shares=last),
    sent=sent_of(compiled.as_text(), devices=devices),
    **_sizes_of_data(settings, data, training),
  )
  print_result_line(report(plan))
  return plan


def shapes_of(make: Callable[..., tuple], *args: Any) -> tuple[Any, Any]:
  """Calls a function without computing the arrays that it returns.

  Args:
    make: (*args) -> (anything, arrays).
    *args: its arguments, arrays or shapes.

  Returns:
    The first result of `make`, and the shapes of its arrays.

  Example:
    >>> shapes_of(lambda x: ('a column', x[:, 0]), np.ones((9, 2)))
    ('a column', ShapeDtypeStruct(shape=(9,), dtype=float32))
  """
  others = []

  def make_arrays(*args: Any) -> Any:
    other, arrays = make(*args)
    others.append(other)
    return arrays

  shapes = jax.eval_shape(make_arrays, *args)
  return others[0], shapes


def _sizes_of_data(
  settings: PlanSettings, data: UserData, training: Training
) -> dict[str, Any]:
  folder = pathlib.Path(settings.data_dir) / data.name
  files = (path for path in folder.rglob('*') if path.is_file())
  # Memory-mapped arrays stay on disk.
  in_memory = {
    id(array): array.nbytes
    for array in _arrays((data.splits, training.splits))
    if not isinstance(array, np.memmap)
  }
  names = data.vocabulary.items
  items = settings.plan_items or len(names)
  # The bytes of a reference and a string.
  name = 8 + sum(map(sys.getsizeof, names)) / len(names)
  users = training.batches.users
  order = 2 * 8 * len(users.items)
  return {
    'dataset': data.name,
    'users': len(users.items),
    'behaviours': int(users.items.lengths.sum()),
    'items': items,
    'data_on_disk': sum(path.stat().st_size for path in files),
    'data_in_memory': sum(in_memory.values()) + order + round(items * name),
  }


def _arrays(tree: Any) -> Iterator[np.ndarray]:
  """All arrays in the columns of users, at any depth."""
  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, np.ndarray):
      yield leaf
    elif dataclasses.is_dataclass(leaf):
      yield from _arrays(vars(leaf))


def _size(tree: Any) -> Size:
  arrays = jax.tree.leaves(tree)
  return Size(
    sum(x.size for x in arrays),
    sum(x.size * x.dtype.itemsize for x in arrays),
  )


def report(plan: Plan) -> str:
  """The table of a plan, and where its numbers are explained."""
  kind = f'simulated {plan.backend}' if plan.simulated else plan.backend
  devices = f'{plan.devices} {kind} device{"s"[: plan.devices > 1]}'
  lines = [f'plan: {plan.dataset}, {devices}, nothing is trained']
  for name, count, size in _rows(plan):
    # A row with only a name is a heading.
    lines.append(f'{name:<38}{count:>18}{size:>14}'.rstrip())
  return '\n'.join([*lines, '', 'How to read it: docs/scaling.md'])


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
  yield 'data', '', ''
  yield '  users trained on', f'{plan.users:,}', ''
  yield '  their behaviours', f'{plan.behaviours:,}', ''
  yield '  items', f'{plan.items:,}', ''
  yield '  on disk', '', size_text(plan.data_on_disk)
  yield '  in memory of each process', '', size_text(plan.data_in_memory)
  yield 'steps', '', ''
  yield '  of an epoch', f'{plan.steps_per_epoch:,}', ''
  yield '  of the run', f'{plan.num_steps:,}', ''
  yield '  users of a step', f'{plan.batch_size:,}', ''
  yield '    on a device', f'{plan.batch_size // plan.devices:,}', ''
  yield 'model', '', ''
  yield _both('  parameters', plan.parameters)
  yield _both('    of the item table', plan.table)
  yield '  state of the optimizer', '', size_text(plan.optimizer.bytes)
  yield 'memory of a device', '', ''
  yield '  model, optimizer, batch', '', size_text(plan.arguments)
  yield '  other results', '', size_text(plan.results)
  yield '  activations, gradients', '', size_text(plan.temporaries)
  yield '  peak of a step', '', size_text(plan.peak)
  yield '    on all devices', '', size_text(plan.devices * plan.peak)
  yield 'work of a step', '', ''
  yield '  matrix products', _flops(plan.flops), ''
  yield '    if all users were of full length', _flops(plan.most_flops), ''
  yield '  sent by a device', '', size_text(sum(plan.sent.values()))
  for name, size in plan.sent.items():
    yield f'    {name}', '', size_text(size)


def _both(name: str, size: Size) -> tuple[str, str, str]:
  return name, f'{size.count:,}', size_text(size.bytes)


def size_text(size: float) -> str:
  """Formats a size in bytes with a binary unit.

  Example:
    >>> [size_text(size) for size in (130, 1536, 25.6e9, 2**51)]
    ['130 B', '1.5 KiB', '23.8 GiB', '2,048.0 TiB']
  """
  if size < 1024:
    return f'{size:.0f} B'
  return _scaled(size / 1024, 1024, ('KiB', 'MiB', 'GiB', 'TiB'))


def _flops(flops: float) -> str:
  return _scaled(flops / 1e6, 1000, ('MFLOP', 'GFLOP', 'TFLOP', 'PFLOP'))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
  """Formats a value, which is in the first unit, by the unit that suits it."""
  *smaller, largest = units
  for unit in smaller:
    if value < base:
      return f'{value:,.1f} {unit}'
    value /= base
  return f'{value:,.1f} {largest}'
