"""Measures one configuration, in this process."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.row_step import RowOptState, apply_pending_updates
from adaptssr_jax.training.step import TrainState, pmap_step
from experiments.benchmarking.options import BenchmarkSettings
from experiments.benchmarking.parts import product_rate, profiled
from experiments.benchmarking.timing import AT_LEAST, ENOUGH, timed
from experiments.benchmarking.work import (
  scored_per_user,
  step_flops,
  synthetic_data,
)
from experiments.planning.counting import padding_share
from experiments.pretraining.step import make_pretraining
from experiments.run import loop
from experiments.run.batches import Batches, Prefetch
from experiments.run.process import num_cores
from experiments.run.steps import (
  Training,
  encoding_params,
  encoding_step,
  sample_lengths,
  sequences_of,
)

# Enough users that batches are read from memory rather than from a CPU cache.
_USERS = 32_768
_WARM_UP = 2
_PROFILED = 5
_MIB = 2**20


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
  """Times training steps as `experiments.pretrain` runs them.

  Args:
    settings: the flags; only the first of their catalogues is measured.

  Returns:
    The results by name; rates are those of the median step. A number that
    cannot be measured on this machine is None.
  """
  pretraining = settings.pretraining()
  loop.check_run(pretraining)
  data = synthetic_data(settings, max(_USERS, 2 * settings.batch_size))
  init_key, train_key = jax.random.split(jax.random.key(pretraining.seed))
  training, state = make_pretraining(pretraining, data, init_key)
  state, found = _time_training(settings, training, state, train_key)
  found |= {
    'num_items': training.encoder.num_items,
    'batch_size': settings.batch_size,
    'widths': training.sequences.buckets.widths,
    'input_users_per_second': _input_rate(training.batches),
  }
  found |= _share_of_machine(settings, training, found['users_per_second'])
  found['padding_share'] = padding_share(
    training.sequences, users=settings.batch_size // jax.local_device_count()
  )
  if settings.inference:
    seconds = _time_encoding(settings, training, apply_pending_updates(state))
    found['encoding_seconds'] = seconds
    found['encoded_users_per_second'] = _rate(settings, seconds)
  return found


def _time_training(
  settings: BenchmarkSettings,
  training: Training,
  state: TrainState,
  key: jax.Array,
) -> tuple[TrainState, dict[str, Any]]:
  rows = isinstance(state.opt_state, RowOptState)
  state, key = replicate((state, key))
  step_fn = pmap_step(training.step, num_replicated_args=1, donate=True)
  steps = _WARM_UP + settings.steps
  batches = training.batches.prefetched(range(steps))
  with contextlib.closing(batches):
    first = next(batches)
    began = time.perf_counter()
    compiled = step_fn.lower(state, first, key).compile()
    compile_seconds = time.perf_counter() - began
    state, metrics = step_fn(state, first, key)
    jax.block_until_ready(metrics)
    first_step_seconds = time.perf_counter() - began
    state, metrics, done, waited = _time_steps(
      step_fn, state, batches, key, clock=settings.clock
    )
  seconds = np.diff(done)
  memory = compiled.memory_analysis()
  # The peak memory is read now, before other work raises it.
  found = machine() | {
    'users_per_second': _rate(settings, seconds),
    'step_seconds': seconds.tolist(),
    'input_wait_share': None
    if settings.cpu_time
    else (waited[-1] - waited[0]) / (done[-1] - done[0]),
    'compile_seconds': compile_seconds,
    'first_step_seconds': first_step_seconds,
    'temp_mib': memory.temp_size_in_bytes / _MIB if memory else None,
    'table_update': 'rows' if rows else 'dense',
    'loss': float(metrics['loss']),
  }
  if settings.profile:
    later = range(steps, steps + _PROFILED)
    state, found['parts'] = profiled(
      step_fn,
      state,
      [training.batches.on_devices(step) for step in later],
      key,
      text=compiled.as_text(),
      dtype=training.encoder.dtype,
    )
  return state, found


def _time_steps(
  step_fn: Callable,
  state: TrainState,
  batches: Any,
  key: jax.Array,
  *,
  clock: Callable[[], float],
) -> tuple[TrainState, dict[str, jax.Array], list[float], list[float]]:
  """Runs steps, and records their ends and the total wait for batches."""
  done, waited, metrics = [], [], None
  for batch in batches:
    before = metrics
    state, metrics = step_fn(state, batch, key)
    # As in training, wait for the step before, while the devices run this one.
    if before is not None:
      jax.block_until_ready(before)
      done.append(clock())
      waited.append(batches.waited)
      if len(done) > AT_LEAST and done[-1] - done[0] > ENOUGH:
        break
  jax.block_until_ready(metrics)
  return state, metrics, [*done, clock()], [*waited, batches.waited]


def _share_of_machine(
  settings: BenchmarkSettings, training: Training, rate: float
) -> dict[str, float]:
  """Rates of tokens and operations, and the rate of one large product."""
  encoder, sequences = training.encoder, training.sequences
  tokens = sequences.per_user * float(sequences.lengths.mean())
  found = {'tokens_per_second': rate * tokens}
  lengths = sample_lengths(training.batches.users, encoder.max_length)
  scored = scored_per_user(settings.objective_names[0], lengths)
  if scored is None:
    return found
  flops = step_flops(
    sequences.lengths,
    users=settings.batch_size,
    encoder=encoder,
    sequences=sequences.per_user,
    scored=scored,
  )
  done = rate / settings.batch_size * flops
  product = product_rate(encoder.dtype, clock=settings.clock)
  return found | {
    'gflops': done / 1e9,
    'product_gflops': product / 1e9,
    'product_share': done / product,
  }


def _rate(settings: BenchmarkSettings, seconds: Iterable[float]) -> float:
  """Users per second, by the median batch."""
  return float(settings.batch_size / np.median(seconds))


def _input_rate(batches: Batches) -> float:
  """Users per second of the input pipeline without training."""
  batches.on_devices(0)
  began, step = time.perf_counter(), 0
  while time.perf_counter() - began < 0.5:
    step += 1
    batches.on_devices(step)
  return step * batches.batch_size / (time.perf_counter() - began)


def _time_encoding(
  settings: BenchmarkSettings, training: Training, params: dict[str, Any]
) -> list[float]:
  """The seconds that it takes to encode each batch without dropout."""
  encoder, size = training.encoder, settings.batch_size
  users = training.batches.users
  sequences = sequences_of(settings, [users], encoder.max_length)
  encode = encoding_step(encoder, sequences.buckets)
  params = encoding_params(params, shard_table=settings.shard_table)
  steps = range(_WARM_UP + settings.steps)
  # Only full batches, which are encoded again if there are too few.
  full = max(len(users.items) // size, 1)
  batches = Prefetch(
    Batches(users, size, sequences.length).at, (step % full for step in steps)
  )
  with contextlib.closing(batches):
    return timed(
      lambda _: np.asarray(encode(params, next(batches))),
      steps,
      warm_up=_WARM_UP,
      clock=settings.clock,
    )


def machine() -> dict[str, Any]:
  """The device, the versions, and the peak memory of this process in MiB."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  peak, held = stats.get('peak_bytes_in_use'), None
  status = pathlib.Path('/proc/self/status')
  if status.exists():
    held = int(status.read_text().split('VmHWM:')[1].split()[0]) / 1024
  return {
    'backend': jax.default_backend(),
    'device': device.device_kind,
    'devices': jax.local_device_count(),
    'cores': num_cores(),
    'jax': jax.__version__,
    'peak_mib': held,
    'device_peak_mib': None if peak is None else peak / _MIB,
  }
