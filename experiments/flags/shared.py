"""The flags that several commands share."""

import dataclasses

from experiments.flags.binder import Settings, SettingsError, flag, mutable_flag
from experiments.flags.process import DistributedSettings, SpeedSettings

LEAVE_ONE_OUT = 'leave_one_out'
# As in `UserEncoder`, which a command imports after its flags are read.
READOUTS = ('pooled', 'last', 'pooled,last')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Settings, group='data'):
  """The data set."""

  dataset: str = flag(
    'synthetic_users/quickstart',
    'The data set, NAME or NAME/SIZE: synthetic_users/{tiny,quickstart,medium,'
    'app,ttl}, movielens_users/{100k,1m}, ta_feng, complete_journey, ttl, or '
    'user_tables (your own files, see --events).',
  )
  data_dir: str = mutable_flag('data', 'Folder of the prepared data sets.')
  manual_dir: str = mutable_flag(
    '',
    'Folder of source files that you provide; by default downloads/manual '
    'in --data_dir.',
  )
  events: tuple[str, ...] = flag(
    (),
    'user_tables: your files of behaviours, CSV, Parquet or JSON lines; text '
    'may be compressed (.csv.gz).',
  )
  labels: str = flag(
    '',
    'user_tables: your table of labels, one row per user; by default, labels '
    'are in --events.',
  )
  user_column: str = flag('user_id', 'user_tables: column of the user ids.')
  item_column: str = flag('item_id', 'user_tables: column of the item ids.')
  time_column: str = flag('time', 'user_tables: column of the times.')
  time_format: str = flag(
    '',
    'user_tables: the format of times, such as %m/%d/%Y (strptime); by default '
    'numbers or ISO-8601 timestamps.',
  )
  where: str = flag(
    '',
    'user_tables: a condition in SQL; rows of --events that do not meet it are '
    "left out. Columns of CSV and JSON lines are text: event = 'view' and "
    'rating::double >= 4.',
  )
  memory_limit: str = mutable_flag(
    '',
    'user_tables: the most memory that sorting the rows may take, such as 4GB, '
    'before it uses files in --data_dir; by default 80% of the machine.',
  )
  beam: bool = mutable_flag(
    False,
    'ttl, user_tables: prepare the same examples with Apache Beam, from '
    "sources larger than one machine. Needs pip install -e '.[beam]'.",
  )
  beam_options: tuple[str, ...] = mutable_flag(
    (),
    '--beam: options of the pipeline, such as --runner=FlinkRunner,'
    '--flink_master=HOST:8081; by default FnApiRunner runs it on this machine.',
    may_repeat=True,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSettings(Settings):
  """The labelled rows that a command learns from."""

  split_seed: int = flag(
    0,
    'Seed of a new random split of the labelled rows, 60/20/20; 0: the stored '
    'split.',
    low=0,
  )
  train_users: int = flag(
    0,
    'Number of labelled rows to train on, the first of the shuffled split; 0: '
    'all.',
    low=0,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSettings(DataSettings, group='data'):
  """The behaviours of each user that are held out."""

  split: str = flag(
    'last_ten',
    'movielens_users: the behaviours of each user that are held out: the last '
    'ten films, or one for validation and one for the test (--task=next_item).',
    choices=('last_ten', LEAVE_ONE_OUT),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(
  SplitSettings, DistributedSettings, SpeedSettings, group='training'
):
  """How a model is trained, logged and saved."""

  workdir: str = mutable_flag(
    'runs/latest',
    'Folder of the run: flags, logs, checkpoints. An unfinished run in it is '
    'resumed.',
  )
  seed: int = flag(
    0, 'Seed of everything random in the run.', low=0, high=2**32 - 1
  )
  num_epochs: int = mutable_flag(20, 'Number of passes over the users.', low=1)
  num_steps: int = mutable_flag(
    0, 'Number of updates; 0: that of --num_epochs.', low=0
  )
  patience: int = mutable_flag(
    0,
    'Number of epochs without a better validation score after which the run '
    'stops; 0: it does not stop early.',
    low=0,
  )
  batch_size: int = flag(128, 'Users of a batch, over all devices.', low=1)
  window: str = flag(
    'last',
    'The behaviours to train on, for a user with more than --max_length: the '
    'last ones, or a random run of them, drawn again in every epoch.',
    choices=('last', 'random'),
  )
  learning_rate: float = flag(
    2e-4, 'Peak learning rate of Adam, see --schedule.', above=0.0
  )
  schedule: str = flag(
    'constant',
    'Learning rate schedule: constant, or a linear or cosine decay to 0 at the '
    'end. With a decay, each step updates the whole item table.',
    choices=('constant', 'linear', 'cosine'),
  )
  warmup_steps: int = flag(
    0,
    'Steps of linear warm-up of the learning rate. Unless it is 0, each step '
    'updates the whole item table.',
    low=0,
  )
  weight_decay: float = flag(
    0.0, 'Decoupled weight decay, as in AdamW.', low=0.0
  )
  max_skipped: int = mutable_flag(
    10,
    'Number of steps in a row without a finite loss and gradient, which are '
    'skipped, after which the run stops; 0: it never stops.',
    low=0,
  )
  checkpoint_every: int = mutable_flag(
    1000, 'Number of steps between two checkpoints.', low=1
  )
  keep_checkpoints: int = mutable_flag(
    2, 'Number of latest checkpoints to keep.', low=1
  )
  log_every: int = flag(10, 'Steps between two lines of metrics.jsonl.', low=1)
  log_seconds: bool = flag(
    False,
    'Also log, at the end of each epoch, the seconds that training has taken, '
    'with compilation, without validation. Two equal runs then no longer write '
    'equal files.',
  )
  log_to: tuple[str, ...] = mutable_flag(
    ('tensorboard',),
    'Where the numbers of metrics.jsonl are also logged: tensorboard, mlflow, '
    'wandb, MODULE:FUNCTION of your own, or several of them.',
  )

  def without_effect(self) -> dict[str, str]:
    """The number of epochs, if there is a number of steps."""
    if not self.num_steps:
      return {}
    return {'num_epochs': f'is overridden by --num_steps={self.num_steps}'}

  def total_steps(self, steps_per_epoch: int) -> int:
    """The number of updates of the run, by --num_steps or --num_epochs."""
    return self.num_steps or self.num_epochs * steps_per_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings(RunSettings, group='plan'):
  """The plan of a run, printed instead of running it."""

  plan: bool = mutable_flag(
    False,
    'Print the memory, operations and network traffic that the run would need, '
    'without training; only the prepared data are written.',
  )
  plan_devices: int = mutable_flag(
    0,
    '--plan: number of devices, which the CPU simulates; 0: those of this '
    'machine.',
    low=0,
  )
  plan_items: int = mutable_flag(
    0, '--plan: number of items in the catalogue; 0: those of the data.', low=0
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ('plan_devices', 'plan_items'):
      if getattr(self, name) and not self.plan:
        raise SettingsError(f'--{name} is for --plan: give that as well')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings, group='encoder'):
  """The encoder; defaults are those of the checkpoint to start from, if any."""

  max_length: int | None = flag(
    None, 'Number of last behaviours of a user that are read [100].', low=1
  )
  embed_dim: int | None = flag(
    None, 'Dimension of item embeddings and queries [64].', low=1
  )
  num_layers: int | None = flag(None, 'Transformer blocks [2].', low=1)
  num_heads: int | None = flag(None, 'Attention heads per block [2].', low=1)
  num_queries: int | None = flag(
    None,
    'Number of pooling queries; a user vector has num_queries x embed_dim '
    'features [1].',
    low=1,
  )
  cosine_pooling: bool | None = flag(None, 'Pool by cosine [false].')
  causal: bool | None = flag(
    None,
    'Causal attention: a state depends on earlier behaviours and its own only '
    '[false; causal_items true].',
  )
  readout: str | None = flag(
    None,
    'The vector of a user: pooled states, the last state, or both, '
    'concatenated [pooled; causal_items last].',
    choices=READOUTS,
  )
  dropout_rate: float | None = flag(
    None, 'Dropout rate in the encoder [0.1].', low=0.0, high=0.99
  )
  item_stddev: float | None = flag(
    None,
    'Standard deviation of a new item table [0.02; 0.06 for objectives that '
    'predict items from the user vector].',
    above=0.0,
  )
  dtype: str | None = flag(
    None,
    'Dtype of the computation in the encoder; parameters and losses stay '
    'float32 [float32].',
    choices=('float32', 'bfloat16'),
  )

  def encoder_fields(self) -> dict[str, object]:
    """The fields of `UserEncoder` that were given."""
    names = {field.name for field in dataclasses.fields(EncoderSettings)}
    values = {name: getattr(self, name) for name in names - {'item_stddev'}}
    return {name: v for name, v in values.items() if v is not None}
