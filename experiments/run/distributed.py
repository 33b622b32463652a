"""Processes, on one host or on many, that train one model together."""

import os

import jax

from experiments.flags.binder import SettingsError
from experiments.flags.process import DistributedSettings

# What Slurm and MPI call the number of processes.
_SIZES = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


def join_processes(settings: DistributedSettings) -> None:
  """Meets the other processes; with `auto`, alone if nothing tells of any.

  Raises:
    SettingsError: they are not known, or cannot be joined.
  """
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
