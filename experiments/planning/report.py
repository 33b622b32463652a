"""The numbers of a plan, and their table."""

import dataclasses
from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Plan:
  """The resources that a run needs; sizes are in bytes."""

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
  # Number of parameters, including frozen ones and the padding of a sharded
  # table.
  parameters: int
  parameters_size: int
  table: int  # number of parameters in the item table
  table_size: int
  optimizer_size: int  # size of the optimizer's state
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
  yield _both('  parameters', plan.parameters, plan.parameters_size)
  yield _both('    of the item table', plan.table, plan.table_size)
  yield '  state of the optimizer', '', size_text(plan.optimizer_size)
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


def _both(name: str, count: int, size: int) -> tuple[str, str, str]:
  return name, f'{count:,}', size_text(size)


def size_text(size: float) -> str:
  """Formats a size in bytes with a binary unit.

  Example:
    >>> size_text(130), size_text(1536), size_text(25.6e9)
    ('130 B', '1.5 KiB', '23.8 GiB')
  """
  if size < 1024:
    return f'{size:.0f} B'
  for unit in ('KiB', 'MiB', 'GiB', 'TiB'):
    size /= 1024
    if size < 1024 or unit == 'TiB':
      break
  return f'{size:,.1f} {unit}'


def _flops(flops: float) -> str:
  for unit in ('MFLOP', 'GFLOP', 'TFLOP', 'PFLOP'):
    flops /= 1e6 if unit == 'MFLOP' else 1e3
    if flops < 1000:
      break
  return f'{flops:,.1f} {unit}'
