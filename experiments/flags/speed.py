"""The flags that change how fast a run is, and its results by rounding only."""

import dataclasses

from experiments.flags.binder import Settings, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingSettings(Settings, group='speed'):
  """In which parts sequences are encoded."""

  buckets: int = flag(
    4,
    'Lengths to which sequences may be cut, which the data choose; each is '
    'compiled. 1: all are encoded at full length.',
    low=1,
    mutable_on_resume=True,
  )
  microbatch: int | None = flag(
    None,
    'Sequences that a device encodes at once, keeping nothing for the gradient '
    'but their vectors; 0: all of them [16 on a CPU, else 256].',
    low=0,
    mutable_on_resume=True,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings(Settings, group='speed'):
  """Where the item table is."""

  shard_table: bool = flag(
    False,
    'Each device holds a part of the rows of the item table, and of what Adam '
    'keeps of them, and fetches those that its users need.',
    mutable_on_resume=True,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedSettings(EncodingSettings, TableSettings, group='speed'):
  """How the work of a training step is done."""

  table_update: str = flag(
    'auto',
    'What Adam updates of the item table in a step: all of it (dense), the '
    'rows of the batch, to the same effect (rows), or what is faster (auto).',
    choices=('auto', 'dense', 'rows'),
  )
