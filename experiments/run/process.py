"""The processes of a run: how each starts and fails, and which prints."""

import contextlib
import gc
import os
import pathlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from adaptssr_jax.errors import CheckpointError, DataError
from adaptssr_jax.training.devices import is_of_lost_process
from experiments.flags.binder import Settings, SettingsError
from experiments.flags.flag_files import with_location
from experiments.flags.process import (
  DistributedSettings,
  ProcessSettings,
  QuietSettings,
)
from experiments.flags.shared import PlanSettings
from experiments.run.agreement import check_same_flags
from experiments.run.interruption import Interrupted, handle_signals

_is_quiet = False
_is_inner = False
# Next to the folder of the run; the user may keep other things there, too.
_FOLDER = 'jax_compilation_cache'
# Seconds after --join_timeout at which JAX would abort the process.
_JOIN_MARGIN = 30
# The variables in which Slurm and Open MPI give the number of processes.
_SIZES = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


def call(
  main: Callable[[Any], Any], settings: Settings, words: Sequence[str] = ()
) -> bool:
  """Prepares the process, calls `main(settings)`, and reports its errors.

  Args:
    words: the words of the command line, with those of flag files; see
      `with_flagfiles`.

  Returns:
    Whether a signal has stopped this process, which then has to end by
    `end_at_once`.
  """
  then = 'resume' if settings.is_resumable else 'start again'
  advice = f'give the same command to {then}'
  try:
    with handle_signals():
      prepare_process(settings)
      check_same_flags(settings)
      main(settings)
  except Interrupted as notice:
    text = f'{notice}: {advice}'
    if not settings.is_resumable:
      _fail(f'error: {text}', at_once=True)
    is_alone = not jax.distributed.is_initialized()
    if is_alone or jax.process_index() == 0:
      print(text, flush=True)
    return is_alone
  except (SettingsError, DataError, CheckpointError) as error:
    _fail(f'error: {with_location(str(error), words)}')
  except MemoryError as error:
    smaller = '--batch_size' if hasattr(settings, 'batch_size') else 'input'
    # Only that of NumPy has a text.
    why = f' ({error})' if str(error) else ''
    _fail(
      f'error: there is not enough memory{why}: take a smaller {smaller}, or a '
      'machine with more memory'
    )
  except KeyboardInterrupt as error:
    signal_name = str(error) or 'SIGINT'
    _fail(f'error: stopped at once by {signal_name}: {advice}', at_once=True)
  except BaseException as error:
    if not jax.distributed.is_initialized():
      raise
    text = traceback.format_exc()
    if is_of_lost_process(error):
      # A process that stops does not notify this one, whose next send or
      # receive then fails.
      text = (
        'error: another process of this run has stopped, or cannot be reached: '
        'look at its output, and give the same command to all processes to '
        f'resume ({str(error).splitlines()[0]})'
      )
    _fail(text)
  return False


def _fail(text: str, *, at_once: bool = False) -> None:
  """Prints the reason, and ends the process with status 1."""
  if not (at_once or jax.distributed.is_initialized()):
    sys.exit(text)
  print(text, file=sys.stderr, flush=True)
  end_at_once(1)


def end_at_once(status: int) -> None:
  """Ends the process without the cleanup that JAX does at an exit.

  The cleanup crashes if an exception has interrupted a compilation. With
  several processes it would wait for the others, which may be waiting for this
  one; JAX notifies them when it is gone.
  """
  sys.stdout.flush()
  os._exit(status)


def prepare_process(settings: Settings) -> None:
  """Sets up the process before a command starts.

  Applies --quiet; joins the other processes, if there are any; and, unless JAX
  has settings for them already, enables the cache of compiled programs and
  makes several devices of the CPU. A plan simulates its devices, and does not
  cache programs.
  """
  if isinstance(settings, QuietSettings):
    be_quiet(settings.quiet)
  is_plan = isinstance(settings, PlanSettings) and settings.plan
  if is_plan and settings.plan_devices:
    jax.config.update('jax_platforms', 'cpu')
  if isinstance(settings, DistributedSettings):
    join_processes(settings)
  if not isinstance(settings, ProcessSettings):
    return
  devices = settings.cpu_devices
  if is_plan:
    devices = settings.plan_devices or devices
  else:
    cache = settings.compilation_cache
    enable_compilation_cache(cache, workdir=settings.workdir)
  is_set = (
    os.environ.get('JAX_NUM_CPU_DEVICES')
    or '--xla_force_host_platform_device_count'
    in os.environ.get('XLA_FLAGS', '')
    or jax.distributed.is_initialized()
  )
  if not devices and not is_set:
    # One device would use several cores for a part of a step only.
    size = getattr(settings, 'batch_size', None)
    devices = num_cpu_devices(size, num_cores())
  if devices:
    jax.config.update('jax_num_cpu_devices', devices)


def is_main_process() -> bool:
  """Whether this is process 0, the only one that writes and prints."""
  return jax.process_index() == 0


def be_quiet(quiet: bool) -> None:
  """Sets whether only results and errors are printed."""
  global _is_quiet
  _is_quiet = quiet


def is_quiet() -> bool:
  """Whether only results and errors are printed."""
  return _is_quiet


def print_line(text: str) -> None:
  """Prints a line in the main process, unless --quiet."""
  if not _is_quiet:
    print_result_line(text)


@contextlib.contextmanager
def inner_run() -> Iterator[None]:
  """Marks a run inside another command: --quiet also mutes its results."""
  global _is_inner
  before, _is_inner = _is_inner, True
  try:
    yield
  finally:
    _is_inner = before


def print_result_line(text: str) -> None:
  """Prints a line of the result in the main process, also with --quiet."""
  if is_main_process() and not (_is_quiet and _is_inner):
    print(text, flush=True)


def num_cores() -> int:
  """The number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def num_cpu_devices(batch_size: int | None, cores: int) -> int:
  """The largest number of devices that split a batch evenly.

  It is at most the number of cores, and each device gets at least 16 users.

  Args:
    batch_size: users of a batch; None for 128.

  Example:
    >>> num_cpu_devices(128, 6), num_cpu_devices(90, 64)
    (4, 5)
  """
  batch_size = batch_size or 128
  most = min(cores, batch_size // 16)
  return max((n for n in range(2, most + 1) if batch_size % n == 0), default=1)


def enable_compilation_cache(cache: str, *, workdir: str | os.PathLike) -> None:
  """Enables the persistent compilation cache of JAX.

  Call it before anything is compiled. It does nothing if JAX has a folder
  already, such as that of JAX_COMPILATION_CACHE_DIR. JAX creates the folder,
  compiles again what it cannot read there, and never removes anything; runs may
  share it at the same time.

  Args:
    cache: 'auto', a folder next to the workdir; 'off' or ''; or the folder.
  """
  if cache in ('off', '') or jax.config.jax_compilation_cache_dir:
    return
  beside = pathlib.Path(workdir).absolute().parent / _FOLDER
  folder = beside if cache == 'auto' else pathlib.Path(cache).absolute()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  # Small programs as well: a start compiles a dozen of them, which take 0.2 s
  # together. A minimum time would depend on the load of the machine.
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def forget_compiled() -> None:
  """Frees the programs that JAX keeps in memory; the cache on disk stays."""
  jax.clear_caches()
  gc.collect()


def join_processes(settings: DistributedSettings) -> None:
  """Connects to the other processes; with `auto`, only if there are any."""
  # A cluster may give a job a single process for all of its devices. JAX would
  # then use the first device only.
  alone = '1' in [os.environ.get(name) for name in _SIZES]
  may_be_many = settings.distributed == 'auto' and not alone
  if not (settings.distributed == 'on' or settings.coordinator or may_be_many):
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  text = (
    'error: not all processes have joined within --join_timeout='
    f'{settings.join_timeout} seconds: look at their output, and give the same '
    'command to all of them, each with another --process_id'
  )
  # Before JAX aborts the process with a stack trace.
  limit = threading.Timer(
    settings.join_timeout, _fail, [text], {'at_once': True}
  )
  limit.daemon = True
  limit.start()
  try:
    jax.distributed.initialize(
      settings.coordinator or None,
      settings.num_processes,
      settings.process_id,
      initialization_timeout=settings.join_timeout + _JOIN_MARGIN,
      heartbeat_timeout_seconds=settings.heartbeat_timeout,
    )
  except ValueError as error:
    if settings.distributed == 'on' or settings.coordinator:
      raise SettingsError(
        f'--distributed={settings.distributed}: the processes are not known '
        f'({error}) Give --coordinator, --num_processes and --process_id'
      ) from error
  except RuntimeError as error:
    raise SettingsError(
      f'--distributed={settings.distributed}: the other processes cannot be '
      f'joined ({str(error).splitlines()[0]}). To run a single process, '
      'give --distributed=off'
    ) from error
  finally:
    limit.cancel()
