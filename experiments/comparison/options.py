"""The flags of `experiments.compare`."""

import dataclasses

from experiments.comparison import methods
from experiments.comparison.methods import FINE_TUNED, MODES, REFERENCE
from experiments.flags.binder import flag
from experiments.flags.process import ProcessSettings
from experiments.flags.shared import DataSettings

# The files are those of the commands that make a single run.
_REPLACED = (
  ' Its --workdir, data, --seed, --task, --split_seed, --train_users, '
  '--compilation_cache, --cpu_devices and where it starts from are those of '
  'the comparison.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(DataSettings, ProcessSettings):
  """The flags of a comparison."""

  workdir: str = flag(
    'runs/compare',
    'Folder of all runs and of the results; runs in it are used again.',
    mutable_on_resume=True,
  )
  tasks: tuple[str, ...] = flag(('gender',), 'The tasks, columns of the table.')
  methods: tuple[str, ...] = flag(
    methods.MAIN_ROWS,
    f'The rows of the table, of: {", ".join(methods.METHODS)}.',
  )
  variant: tuple[str, ...] = flag(
    (),
    'Also a row of --methods with some flags of its pre-training changed; may '
    'be given again: --variant="pooled_items --embed_dim=256 --num_epochs=6".',
    repeated=True,
  )
  concatenated: tuple[str, ...] = flag(
    (),
    'Also a row, of the frozen columns, whose vectors are those of several '
    'methods, concatenated; may be given again: --concatenated="joint sasrec". '
    'A variant goes by its name in results.json: pooled_items+embed_dim=256.',
    repeated=True,
  )
  reference: str = flag(
    REFERENCE, 'The row that all others are compared with by paired tests.'
  )
  modes: tuple[str, ...] = flag(
    (FINE_TUNED,),
    'Columns of a task: encoder and head trained on it; a regression on the '
    'vectors of the frozen encoder, logistic for labels, ridge for rankings; '
    'and, for labels, that on the vectors joined with the TF-IDF bag of the '
    'whole history.',
    choices=MODES,
  )
  seeds: tuple[str, ...] = flag(('0',), 'Seeds of fine-tuning.')
  splits: tuple[str, ...] = flag(
    ('0',), 'Seeds by which the labelled rows are split; 0: as stored.'
  )
  probe_splits: int = flag(
    10,
    'How many splits there are in the frozen columns, where a number takes '
    'seconds: those of the seeds 0, 1, 2, ...',
    low=1,
  )
  crossed: bool = flag(
    True,
    'Every seed in every split; else the first seed in the first split, the '
    'second in the second, and so on.',
  )
  train_shares: tuple[str, ...] = flag(
    ('1',), 'Shares of the training labels to learn from, a table each.'
  )
  pretrain_seeds: int = flag(
    0,
    'How many of --seeds are also pre-trained with; fine-tuning goes round '
    'them. 0: all.',
    low=0,
  )
  warm_start: str = flag(
    '', 'Flag file of pre-training on masked items.' + _REPLACED
  )
  pretrain: str = flag('', 'Flag file of pre-training by AdaptSSR.' + _REPLACED)
  first_stage: str = flag(
    '',
    'Flag file of pre-training on pooled items, alone or with others.'
    + _REPLACED,
  )
  last_stage: str = flag(
    '', 'Flag file of AdaptSSR, alone or with others, after it.' + _REPLACED
  )
  joint: str = flag(
    '', 'Flag file of both together from a random start.' + _REPLACED
  )
  classification: str = flag(
    '', 'Flag file of fine-tuning on classes.' + _REPLACED
  )
  conversion: str = flag(
    '', 'Flag file of fine-tuning on conversions.' + _REPLACED
  )
  ranking: str = flag('', 'Flag file of fine-tuning on rankings.' + _REPLACED)
  rhos: tuple[str, ...] = flag(
    (),
    'Also AdaptSSR with these shares of a sequence changed by augmentation.',
  )
  augmentation_pairs: bool = flag(
    False, 'Also AdaptSSR with one augmentation a view, all pairs.'
  )

  dry_run: bool = flag(
    False,
    'Make and write nothing but the prepared data: list the runs that are '
    'missing, and how long they take if it is as long as those like them took.',
    mutable_on_resume=True,
  )

  def mutable_names(self) -> set[str]:
    """All but the data: each run of the grid keeps watch over its own flags."""
    names = {field.name for field in dataclasses.fields(self)}
    data = {field.name for field in dataclasses.fields(DataSettings)}
    return super().mutable_names() | (names - data)
