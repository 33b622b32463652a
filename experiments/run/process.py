"""The processes of a run: how each starts and fails, and which prints."""

import contextlib
import dataclasses
import gc
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from adaptssr_jax.errors import CheckpointError, DataError
from adaptssr_jax.training.devices import is_of_lost_process
from experiments.flags.binder import Settings, SettingsError
from experiments.flags.flag_files import with_place
from experiments.flags.process import (
  DistributedSettings,
  ProcessSettings,
  QuietSettings,
)
from experiments.flags.shared import PlanSettings
from experiments.run.interruption import Interrupted, listening

_is_quiet = False
_is_inner = False
# Beside the folder of the run, where a user may keep other things.
_FOLDER = 'jax_compilation_cache'
# What Slurm and MPI call the number of processes.
_SIZES = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


def call(
  main: Callable[[Any], Any], settings: Settings, words: Sequence[str] = ()
) -> None:
  """Calls `main(settings)` in a process that is prepared for it.

  Args:
    words: that gave the flags, some of which may be those of a flag file.
  """
  try:
    with listening():
      prepare_process(settings)
      main(settings)
  except Interrupted as notice:
    advice = 'give the same command to'
    if not settings.goes_on:
      _fail(f'error: {notice}: {advice} begin again')
    if not jax.distributed.is_initialized() or jax.process_index() == 0:
      print(f'{notice}: {advice} go on', flush=True)
  except (SettingsError, DataError, CheckpointError) as error:
    _fail(f'error: {with_place(str(error), words)}')
  except BaseException as error:
    if not jax.distributed.is_initialized():
      raise
    text = traceback.format_exc()
    if is_of_lost_process(error):
      # The others end without a word to this one, which finds that out when it
      # sends them something, or receives.
      text = (
        'error: another process of this run has stopped, or cannot be reached: '
        'look at what it says, and give the same command to all processes to '
        f'go on ({str(error).splitlines()[0]})'
      )
    _fail(text)


def _fail(text: str) -> None:
  """Ends the process with a text that says why."""
  if not jax.distributed.is_initialized():
    sys.exit(text)
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  # Else JAX would wait for the others, who may wait for this one. They are
  # notified when it is gone.
  os._exit(1)


def prepare_process(settings: Settings) -> None:
  """Sets what holds for the whole process, before a command begins.

  Makes it quiet, if it is to be; joins the other processes, if there are any;
  turns the cache of compiled programs on, and makes cores devices, unless JAX
  has settings for that already. For a plan it simulates the devices, and keeps
  no program.
  """
  if isinstance(settings, QuietSettings):
    be_quiet(settings.quiet)
  if isinstance(settings, PlanSettings) and settings.plan:
    if settings.plan_devices:
      jax.config.update('jax_platforms', 'cpu')
    settings = dataclasses.replace(
      settings,
      plan=False,
      plan_devices=0,
      plan_items=0,
      compilation_cache='off',
      cpu_devices=settings.plan_devices or settings.cpu_devices,
    )
  if isinstance(settings, DistributedSettings):
    join_processes(settings)
  if not isinstance(settings, ProcessSettings):
    return
  keep_compiled(settings.compilation_cache, workdir=settings.workdir)
  devices = settings.cpu_devices
  is_set = (
    os.environ.get('JAX_NUM_CPU_DEVICES')
    or '--xla_force_host_platform_device_count'
    in os.environ.get('XLA_FLAGS', '')
    or jax.distributed.is_initialized()
  )
  if not devices and not is_set:
    # Within one device only part of a step is shared between cores.
    devices = parts_of(getattr(settings, 'batch_size', None), num_cores())
  if devices:
    jax.config.update('jax_num_cpu_devices', devices)


def is_main_process() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def be_quiet(quiet: bool) -> None:
  """Sets whether nothing but results and errors is printed."""
  global _is_quiet
  _is_quiet = quiet


def is_quiet() -> bool:
  """Whether nothing but results and errors is printed."""
  return _is_quiet


def tell(text: str) -> None:
  """Prints a line, once for all processes, unless they are to be quiet."""
  if not _is_quiet:
    tell_result(text)


@contextlib.contextmanager
def inner_run() -> Iterator[None]:
  """Marks a run inside another command: --quiet also mutes its results."""
  global _is_inner
  before, _is_inner = _is_inner, True
  try:
    yield
  finally:
    _is_inner = before


def tell_result(text: str) -> None:
  """Prints a line that a script may need, once for all processes."""
  if is_main_process() and not (_is_quiet and _is_inner):
    print(text, flush=True)


def num_cores() -> int:
  """The cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def parts_of(batch_size: int | None, cores: int) -> int:
  """The largest number of equal parts of a batch, with limits.

  There are at most as many parts as cores, and each has 16 users or more. None
  as the batch size counts as 128.

  Example:
    >>> parts_of(128, 6), parts_of(90, 6), parts_of(90, 64), parts_of(None, 64)
    (4, 5, 5, 8)
  """
  batch_size = batch_size or 128
  most = min(cores, batch_size // 16)
  return max((n for n in range(2, most + 1) if batch_size % n == 0), default=1)


def keep_compiled(cache: str, *, workdir: str | os.PathLike) -> None:
  """Lets later processes find what this one compiles.

  Call it before anything is compiled. It does nothing where JAX has a folder
  already, as by the variable JAX_COMPILATION_CACHE_DIR. JAX makes the folder
  when it compiles, compiles anew what it cannot read there, and never removes
  anything; runs may share it at the same time.

  Args:
    cache: 'auto', a folder beside the workdir; 'off'; or the folder.
  """
  if cache == 'off' or jax.config.jax_compilation_cache_dir:
    return
  beside = pathlib.Path(workdir).absolute().parent / _FOLDER
  folder = beside if cache == 'auto' else pathlib.Path(cache).absolute()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  # Small programs too: a start has a dozen, 0.2 s together. What took long is
  # no measure either, since that depends on what else the machine does.
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def forget_compiled() -> None:
  """Frees what JAX keeps of a run: its programs, which are on disk as well."""
  jax.clear_caches()
  gc.collect()


def join_processes(settings: DistributedSettings) -> None:
  """Meets the other processes; with `auto`, works alone if there are none."""
  # A cluster may give a job one process for all of its devices, of which JAX
  # would take the first alone.
  alone = '1' in [os.environ.get(name) for name in _SIZES]
  may_be_many = settings.distributed == 'auto' and not alone
  if not (settings.distributed == 'on' or settings.coordinator or may_be_many):
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      settings.coordinator or None,
      settings.num_processes,
      settings.process_id,
      initialization_timeout=settings.join_timeout,
      heartbeat_timeout_seconds=settings.heartbeat_timeout,
    )
  except ValueError as error:
    if settings.distributed == 'on' or settings.coordinator:
      raise SettingsError(
        f'--distributed={settings.distributed}: nothing says which processes '
        f'there are ({error}) Give --coordinator, --num_processes and '
        '--process_id'
      ) from error
  except RuntimeError as error:
    raise SettingsError(
      f'--distributed={settings.distributed}: the other processes cannot be '
      f'joined ({str(error).splitlines()[0]}). If this one is to work alone, '
      'give --distributed=off'
    ) from error
