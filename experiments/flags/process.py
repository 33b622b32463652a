"""The flags of a process: its output, devices, peers and speed."""

import dataclasses

from experiments.flags.binder import Settings, SettingsError, flag, mutable_flag
from experiments.flags.objectives import traits_of

# Flags, each of some commands, that need the whole table in every step or leave
# it as it is, unless they have their default.
_WHOLE_TABLE = (
  *('weight_decay', 'schedule', 'warmup_steps'),
  *('tied_targets', 'mode', 'head_epochs'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuietSettings(Settings):
  """The flag that mutes progress."""

  quiet: bool = mutable_flag(
    False, 'Print only errors and the lines of the result.'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings(QuietSettings, group='devices'):
  """The compilation cache and the devices; for commands with --workdir."""

  compilation_cache: str = mutable_flag(
    'auto',
    'Folder where JAX keeps compiled programs, so that the next start takes '
    'less time: auto, jax_compilation_cache next to the folder of the run; '
    'off, as an empty value is; or a folder. JAX_COMPILATION_CACHE_DIR takes '
    'precedence.',
  )
  cpu_devices: int = mutable_flag(
    0,
    'Number of JAX devices on a CPU, which split each batch; each holds all '
    'parameters. 0: one per core, as long as each gets 16 users of a batch; or '
    "JAX's own setting, if a variable of JAX sets it or there are several "
    'processes.',
    low=0,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedSettings(ProcessSettings, group='several processes'):
  """The processes of a run; each is given the same command."""

  distributed: str = mutable_flag(
    'auto',
    'Whether this process is one of several. auto: if a TPU pod, '
    'Slurm, Kubernetes or MPI reports several, or if --coordinator is given.',
    choices=('auto', 'on', 'off'),
  )
  coordinator: str = mutable_flag(
    '',
    'HOST:PORT where process 0 listens, with --num_processes and --process_id: '
    'for clusters that JAX does not detect.',
  )
  num_processes: int | None = mutable_flag(None, 'Number of processes.', low=1)
  process_id: int | None = mutable_flag(
    None, 'Index of this process, from 0.', low=0
  )
  join_timeout: int = mutable_flag(
    300,
    'Seconds to wait for all processes at the start, before this one ends.',
    low=1,
  )
  heartbeat_timeout: int = mutable_flag(
    100,
    'Seconds without a heartbeat of a process after which the others stop.',
    low=1,
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
    if missing:
      return
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingSettings(Settings, group='speed'):
  """How sequences are grouped by length and encoded in microbatches."""

  buckets: int = mutable_flag(
    4,
    'Number of lengths to which sequences are padded, chosen from the data; '
    'each is compiled. 1: all sequences have the full length.',
    low=1,
  )
  microbatch: int | None = mutable_flag(
    None,
    'Sequences that a device encodes at a time, keeping only their vectors for '
    'the gradient; 0: all of them [16 on a CPU, else 256].',
    low=0,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistorySettings(Settings):
  """What is encoded of the history of a user."""

  history: str = flag(
    'last',
    'What the vector is made of if a history is longer than the encoder reads. '
    'last: its last behaviours; whole: the mean over windows of all of it, '
    'weighted by their lengths.',
    choices=('last', 'whole'),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserVectorSettings(HistorySettings):
  """What the vector of a user is made of."""

  concatenate: tuple[str, ...] = flag(
    (),
    'Workdirs of further runs, DIR or DIR,DIR, whose vectors are appended to '
    'that of --pretrained.',
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings(Settings, group='speed'):
  """The layout of the item table."""

  shard_table: bool = mutable_flag(
    False,
    'Shard the item table and its Adam state over the devices; each device '
    'fetches the rows that its users need.',
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedSettings(EncodingSettings, TableSettings, group='speed'):
  """How a training step is computed."""

  table_update: str = flag(
    'auto',
    'What Adam updates in the item table at a step: all rows (dense), the rows '
    'of the batch, with the same result (rows), or whichever is faster (auto).',
    choices=('auto', 'dense', 'rows'),
  )


def check_table_update(settings: SpeedSettings) -> None:
  """Raises `SettingsError` if flags exclude a sharded table or row updates."""
  for name in getattr(settings, 'objective', ()):
    if traits_of(settings, name).fills and settings.shard_table:
      raise SettingsError(
        f'--shard_table does not go with --objective={name}, which draws items '
        'whose rows may be on another device: leave it out'
      )
  needs = whole_table_flag(settings)
  if settings.table_update == 'rows' and needs:
    raise SettingsError(
      f'--table_update=rows does not go with {needs}, which needs the whole '
      'table in every step, or none of it: take --table_update=auto'
    )


def whole_table_flag(settings: SpeedSettings) -> str:
  """The flag by which a step updates the whole table or none of it, or ''."""
  for name in _WHOLE_TABLE:
    value = getattr(settings, name, None)
    if value and value != getattr(type(settings), name):
      return f'--{name}' if value is True else f'--{name}={value}'
  for name in getattr(settings, 'objective', ()):
    # An exact softmax changes every row.
    if traits_of(settings, name).over_all_items and not settings.sampled_items:
      return f'--objective={name}'
  return ''
