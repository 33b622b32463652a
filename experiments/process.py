"""The flags of what holds for a whole process."""

import dataclasses
import os

import jax

from experiments.compilation import keep_compiled
from experiments.settings import Settings, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings(Settings):
  """Where compiled programs are kept, and what a device is; with --workdir."""

  compilation_cache: str = flag(
    'auto',
    "Folder of JAX's compiled programs, which spare the next run most of its "
    'start: auto, jax_compilation_cache beside --workdir; off; or a folder. '
    'JAX_COMPILATION_CACHE_DIR comes first.',
    same_run=False,
  )
  cpu_devices: int = flag(
    0,
    'Parts of a batch that are computed at the same time on a CPU; 0: one a '
    'core, if each gets 16 users of a batch or more, JAX was not told by a '
    'variable, and no other process works with this one. Each holds all '
    'parameters.',
    low=0,
    same_run=False,
  )

  def prepare_process(self) -> None:
    """Turns the cache on, and makes cores devices, unless JAX was told already.

    Within one device only part of a step is shared between cores.
    """
    keep_compiled(self.compilation_cache, workdir=self.workdir)
    devices = self.cpu_devices
    if not devices and not (_told() or jax.distributed.is_initialized()):
      devices = parts_of(getattr(self, 'batch_size', None), num_cores())
    if devices:
      jax.config.update('jax_num_cpu_devices', devices)


def is_first() -> bool:
  """Whether this process is the one that writes and tells."""
  return jax.process_index() == 0


def tell(text: str) -> None:
  """Prints a line, once for all processes."""
  if is_first():
    print(text, flush=True)


def num_cores() -> int:
  """The cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _told() -> bool:
  """Whether JAX was told how many devices a CPU is."""
  flags = os.environ.get('XLA_FLAGS', '')
  return bool(
    os.environ.get('JAX_NUM_CPU_DEVICES')
    or '--xla_force_host_platform_device_count' in flags
  )


def parts_of(batch_size: int | None, cores: int) -> int:
  """The most equal parts of a batch, one a core, of 16 users or more.

  Of a batch that is not known yet, as of one of 128.

  Example:
    >>> parts_of(128, 6), parts_of(90, 6), parts_of(90, 64), parts_of(None, 64)
    (4, 5, 5, 8)
  """
  batch_size = batch_size or 128
  most = min(cores, batch_size // 16)
  return max((n for n in range(2, most + 1) if batch_size % n == 0), default=1)
