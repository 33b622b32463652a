"""Profiles a step: the time that each part of the model takes."""

import collections
import functools
import itertools
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptssr_jax.training.step import PmapStep, TrainState
from experiments.flags.binder import SettingsError
from experiments.planning.hlo import Program

# The parts by regular expressions of the name stack of an operation, which has
# the named scopes of the library and the modules of the encoder. The first
# expression that matches decides.
_PARTS = {
  'optimizer': r'\boptimizer\b',
  'look-up of items': r'\blook_up\b',
  'views': r'\bviews\b',
  'loss': r'\bloss\b',
  'dropout': r'\bdropout\b',
  'pooling': r'\bpooling\b',
  'softmax': r'\bsoftmax\b',
  'norms': r'norm\b',
  'feed-forward': r'\bfeed_forward\b',
  'attention, linear maps': r'\battention/(query|key|value|output)\b',
  'attention, products': r'\battention/.*dot_general',
  'attention, masks and copies': r'\battention\b',
  'encoder, sums and the rest': r'\bUserEncoder\b',
  'groups: sort, cut, add gradients': r'\bgroups\b',
}
_COLLECTIVES = ('all-', 'reduce-scatter', 'collective-')
_OTHERS = 'no part by name'
_CLOCK = 'the step, by the clock'
# They contain other operations, which are timed themselves.
_CONTROL_FLOW = {'while', 'conditional', 'call'}
# Their part is no sign of the purpose of a fusion that contains them.
_UNINFORMATIVE = {
  *('parameter', 'constant', 'iota', 'tuple', 'get-tuple-element', 'bitcast'),
  *('broadcast', 'reshape', 'transpose', 'copy', 'slice', 'convert', 'compare'),
}
_PASSES = ('forward', 'again', 'gradient', 'other')
# The numbers of a row, and their formats, by the heads of their columns.
_COLUMNS = {
  **{key: (key, '.1f') for key in ('ms', *_PASSES)},
  'of all': ('share', '.1%'),
  'of products': ('of_products', '.0%'),
  'of memory': ('of_memory', '.0%'),
}


def profiled(
  step: PmapStep,
  state: TrainState,
  batches: Sequence[dict[str, jax.Array]],
  key: jax.Array,
  *,
  text: str,
  dtype: str,
) -> tuple[TrainState, list[dict[str, Any]]]:
  """Runs a few steps under JAX's profiler, and times their parts.

  Args:
    state: the state before the steps, which is donated.
    batches: one batch for each step.
    text: the text of the compiled step, `jax.stages.Compiled.as_text()`.
    dtype: the dtype of its matrix products.

  Returns:
    The state after the steps, and the rows of `rows_of`, each with its `share`
    in the sum of all `ms`. The last row has only the `ms` of a step by the
    clock, which includes pauses between operations and other programs.
  """
  seconds = []
  with tempfile.TemporaryDirectory() as folder:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
      for batch in batches:
        began = time.perf_counter()
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    program = Program(text)
    times = times_of(pathlib.Path(folder), program.module)
  rows = rows_of(program, times, steps=len(batches), rates=best_rates(dtype))
  whole = sum(row['ms'] for row in rows)
  rows = [row | {'share': row['ms'] / whole} for row in rows]
  rows.append({'name': _CLOCK, 'ms': 1000 * statistics.median(seconds)})
  return state, rows


def times_of(folder: pathlib.Path, module: str) -> dict[str, list[float]]:
  """The seconds of all runs of each operation of a module, by its name.

  Args:
    folder: the folder into which the profiler has written.
    module: the name of the compiled program, `hlo.Program.module`.

  Raises:
    SettingsError: If the profiler recorded no operation of the module.
  """
  found = collections.defaultdict(list)
  for path in folder.rglob('*.xplane.pb'):
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for event in itertools.chain(*(line.events for line in plane.lines)):
        stats = dict(event.stats)
        if 'hlo_op' in stats and stats.get('hlo_module') == module:
          found[stats['hlo_op']].append(event.duration_ns / 1e9)
  if not found:
    raise SettingsError(
      f'the profiler of JAX has recorded no operation of the step ({module}) '
      'on this device: leave out --profile'
    )
  return found


def rows_of(
  program: Program,
  times: dict[str, list[float]],
  *,
  steps: int,
  rates: tuple[float, float],
) -> list[dict[str, Any]]:
  """Sums the times of operations by part, in milliseconds per device and step.

  Args:
    times: the result of `times_of`.
    steps: the number of steps that ran.
    rates: the result of `best_rates`.

  Returns:
    One row for each part that takes time, the slowest first: its `name`; the
    time in ms of the `forward` pass, of its recomputation for the gradient
    (`again`), of the `gradient`, and of everything else (`other`), such as the
    optimizer; their sum `ms`; and `of_products` and `of_memory`, the shares of
    `ms` that its products and its bytes would take at `best_rates`. `of_memory`
    can exceed 1 for data in the cache. The time of an operation is its median.
    Operations that are fused from several parts, or that belong to no known
    part, have rows of their own.
  """
  products, memory = rates
  spent = collections.defaultdict(collections.Counter)
  for name, seconds in times.items():
    operation = program.operations.get(name)
    if operation is None or operation.opcode in _CONTROL_FLOW:
      continue
    row = spent[part_of(program, name)]
    runs = 1000 * len(seconds) / (steps * jax.local_device_count())
    # The median, since other programs may interrupt any single run.
    row[_pass_of(operation.op_name)] += runs * statistics.median(seconds)
    row['of_products'] += runs * program.flops(name) / products
    row['of_memory'] += runs * program.bytes(name) / memory
  rows = []
  for name, row in spent.items():
    spent_by = {each: row[each] for each in _PASSES}
    ms = sum(spent_by.values())
    if ms:
      bounds = {each: row[each] / ms for each in ('of_products', 'of_memory')}
      rows.append({'name': name, 'ms': ms} | spent_by | bounds)
  return sorted(rows, key=lambda row: -row['ms'])


def part_of(program: Program, name: str) -> str:
  """The part of an operation; several parts of a fusion are joined by ' + '."""
  if program.operations[name].opcode.startswith(_COLLECTIVES):
    return 'collectives'
  inner = [program.operations[each] for each in program.inside(name)]
  inner = [each for each in inner if each.opcode not in _UNINFORMATIVE]
  found = {_part(each.op_name) for each in inner if each.op_name}
  if not found:
    found = {_part(program.operations[name].op_name)}
  return ' + '.join(part for part in (*_PARTS, _OTHERS) if part in found)


def _part(op_name: str) -> str:
  for part, words in _PARTS.items():
    if re.search(words, op_name):
      return part
  return _OTHERS


def _pass_of(op_name: str) -> str:
  if 'rematted_computation' in op_name:
    return 'again'
  if 'transpose(' in op_name:
    return 'gradient'
  return 'forward' if 'jvp(' in op_name else 'other'


def table_of(parts: Sequence[dict[str, Any]]) -> list[list[str]]:
  """The table of a profile, in which small fusions of several parts are one."""
  *rows, clock = parts
  small = [row for row in rows if ' + ' in row['name'] and row['share'] < 0.01]
  rows = [row for row in rows if row not in small]
  if small:
    sums = {
      key: sum(row[key] for row in small) for key in ('ms', 'share', *_PASSES)
    }
    rows.append({'name': 'other parts, fused'} | sums)
  table = [['part', *_COLUMNS]]
  for row in (*rows, clock):
    cells = [
      format(row[key], form) if key in row else '-'
      for key, form in _COLUMNS.values()
    ]
    table.append([row['name'], *cells])
  return table


def product_rate(
  dtype: str, *, clock: Callable[[], float] = time.perf_counter
) -> float:
  """Operations per second of one large product, summed over all devices."""
  size = 2048 if jax.default_backend() == 'cpu' else 8192
  matrix = jnp.ones((size, size), dtype)
  rate = _times_a_second(jnp.matmul, matrix, matrix, clock=clock)
  return 2 * size**3 * rate


def best_rates(dtype: str) -> tuple[float, float]:
  """The best operations and bytes per second that one device reaches.

  They are those of the fastest of many short runs, since other programs may
  interrupt some: of matrix products, and of passes that read and write an array
  in place.
  """
  on_cpu = jax.default_backend() == 'cpu'
  matrix = jnp.ones([512 if on_cpu else 8192] * 2, dtype)
  numbers = jnp.ones(2**23 if on_cpu else 2**26)
  best = functools.partial(_times_a_second, choose=min, repeats=50)
  products = 2 * len(matrix) ** 3 * best(jnp.matmul, matrix, matrix)
  memory = 2 * numbers.nbytes * best(jnp.negative, numbers, in_place=True)
  devices = jax.local_device_count()
  return products / devices, memory / devices


def _times_a_second(
  function: Callable[..., jax.Array],
  *args: jax.Array,
  choose: Callable[[Sequence[float]], float] = statistics.median,
  repeats: int = 7,
  in_place: bool = False,
  clock: Callable[[], float] = time.perf_counter,
) -> float:
  """How often per second all devices together can run a function."""
  run = jax.jit(function, donate_argnums=(0,) if in_place else ())
  seconds = []
  for _ in range(repeats + 1):
    began = clock()
    done = jax.block_until_ready(run(*args))
    args = (done,) if in_place else args
    seconds.append(clock() - began)
  # On a CPU one device uses all cores.
  count = jax.local_device_count() if jax.default_backend() != 'cpu' else 1
  return count / choose(seconds[1:])
