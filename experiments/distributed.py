"""Processes, on one host or on many, that train one model together."""

import dataclasses
import os

import jax

from experiments.process import ProcessSettings
from experiments.settings import SettingsError, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedSettings(ProcessSettings):
  """Which processes there are; the same command is given to each."""

  distributed: str = flag(
    'auto',
    'Whether other processes work with this one. auto: on a TPU pod, in Slurm, '
    'Kubernetes or MPI, which say so, and where --coordinator is given.',
    choices=('auto', 'on', 'off'),
    same_run=False,
  )
  coordinator: str = flag(
    '',
    'HOST:PORT where process 0 listens, with --num_processes and --process_id: '
    'for clusters that do not say so themselves.',
    same_run=False,
  )
  num_processes: int | None = flag(
    None, 'How many processes there are.', low=1, same_run=False
  )
  process_id: int | None = flag(
    None, 'The number of this process, from 0.', low=0, same_run=False
  )
  join_timeout: int = flag(
    300,
    'Seconds to wait at the start for all processes, after which JAX ends this '
    'one.',
    low=1,
    same_run=False,
  )
  heartbeat_timeout: int = flag(
    100,
    'Seconds without a sign of life after which a process counts as lost, and '
    'the others stop.',
    low=1,
    same_run=False,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    given = {
      '--coordinator': self.coordinator or None,
      '--num_processes': self.num_processes,
      '--process_id': self.process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
      raise SettingsError(
        f'{" and ".join(given.keys() - set(missing))} without '
        f'{" and ".join(missing)}: give all three or none'
      )
    if not missing:
      self._check_coordinator()

  def _check_coordinator(self) -> None:
    if self.distributed == 'off':
      raise SettingsError('--distributed=off contradicts --coordinator')
    host, _, port = self.coordinator.rpartition(':')
    if not (host and port.isdigit()):
      raise SettingsError(
        f'--coordinator must be HOST:PORT, not {self.coordinator}'
      )
    if self.process_id >= self.num_processes:
      raise SettingsError(
        f'--process_id must be below --num_processes={self.num_processes}, not '
        f'{self.process_id}'
      )

  def prepare_process(self) -> None:
    """Joins the other processes, if there are any."""
    if self.distributed == 'on' or self.coordinator or self._may_be_many():
      self.join()
    super().prepare_process()

  def _may_be_many(self) -> bool:
    # A cluster may give a job one process for all of its devices, of which JAX
    # would take the first alone.
    sizes = [os.environ.get(name) for name in _SIZES]
    return self.distributed == 'auto' and '1' not in sizes

  def join(self) -> None:
    """Meets the other processes; with `auto`, alone if nothing tells of any.

    Raises:
      SettingsError: they are not known, or cannot be joined.
    """
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
      jax.distributed.initialize(
        self.coordinator or None,
        self.num_processes,
        self.process_id,
        initialization_timeout=self.join_timeout,
        heartbeat_timeout_seconds=self.heartbeat_timeout,
      )
    except ValueError as error:
      if self.distributed == 'on' or self.coordinator:
        raise SettingsError(
          f'--distributed={self.distributed}: nothing says which processes '
          f'there are ({error}) Give --coordinator, --num_processes and '
          '--process_id'
        ) from error
    except RuntimeError as error:
      raise SettingsError(
        f'--distributed={self.distributed}: the other processes cannot be '
        f'joined ({str(error).splitlines()[0]}). If this one is to work alone, '
        'give --distributed=off'
      ) from error


_SIZES = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
