"""The flags of `experiments.compare`."""

import dataclasses
from typing import Any

from experiments.comparison import methods
from experiments.comparison.methods import FINE_TUNED, MODES, REFERENCE
from experiments.flags.binder import flag, mutable_flag
from experiments.flags.process import ProcessSettings
from experiments.flags.shared import DataSettings


def _flag_file(contents: str) -> str:
  """A flag that names the flag file of the command for a single run."""
  return flag(
    '',
    f'Flag file of {contents}. The comparison replaces its --workdir, data, '
    '--seed, --task, --split_seed, --train_users, --compilation_cache, '
    '--cpu_devices, --init_from and --pretrained.',
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(DataSettings, ProcessSettings):
  """The flags of a comparison."""

  workdir: str = mutable_flag(
    'runs/compare',
    'Folder of all runs and of the results; finished runs in it are reused.',
  )
  tasks: tuple[str, ...] = flag(('gender',), 'The tasks, columns of the table.')
  methods: tuple[str, ...] = flag(
    methods.MAIN_ROWS,
    f'The rows of the table, of: {", ".join(methods.METHODS)}.',
  )
  variant: tuple[str, ...] = flag(
    (),
    'One more row: a method with some flags of its pre-training changed, such '
    'as --variant="pooled_items --embed_dim=256 --num_epochs=6". May be given '
    'several times.',
    repeated=True,
    may_repeat=True,
  )
  concatenated: tuple[str, ...] = flag(
    (),
    'One more row, in the frozen columns: the vectors of several methods, '
    'concatenated, such as --concatenated="joint sasrec". A method that is '
    'named n times stands for n of its seeds: of each seed, and of the next '
    'ones, so give more than n --seeds. May be given several times. The name '
    'of a variant is that in results.json: pooled_items+embed_dim=256.',
    repeated=True,
    may_repeat=True,
  )
  whole_history: tuple[str, ...] = flag(
    (),
    'One more row, in the frozen columns, for each of these methods: its mean '
    'vector over windows of the whole history. The row is named NAME_whole, '
    'and --concatenated takes it, too. The name of a variant is that in '
    'results.json.',
  )
  reference: str = flag(
    REFERENCE, 'The row that all others are compared with by paired tests.'
  )
  modes: tuple[str, ...] = flag(
    (FINE_TUNED,),
    'The columns of each task. fine_tuned: encoder and head are trained on it; '
    'frozen: a regression on the vectors of the frozen encoder, logistic for '
    'labels, ridge for rankings; frozen_with_bag, for labels: the same on the '
    'vectors joined with the TF-IDF bag of the whole history.',
    choices=MODES,
  )
  seeds: tuple[str, ...] = flag(('0',), 'Seeds of fine-tuning.')
  splits: tuple[str, ...] = flag(
    ('0',), 'Seeds by which the labelled rows are split; 0: as stored.'
  )
  probe_splits: int = flag(
    10,
    'The number of splits in the frozen columns, where one takes seconds; '
    'their seeds are 0, 1, 2, ...',
    low=1,
  )
  crossed: bool = flag(
    True,
    'Run every seed in every split; if false, the first seed in the first '
    'split, the second in the second, and so on.',
  )
  train_shares: tuple[str, ...] = flag(
    ('1',),
    'Shares of the training labels to learn from; each has a table.',
  )
  pretrain_seeds: int = flag(
    0,
    'The number of --seeds that are used for pre-training, too; fine-tuning '
    'cycles through these runs. 0: all.',
    low=0,
  )
  warm_start: str = _flag_file('pre-training on masked items')
  pretrain: str = _flag_file('pre-training by AdaptSSR')
  first_stage: str = _flag_file(
    'pre-training on pooled items, alone or with others'
  )
  last_stage: str = _flag_file(
    'AdaptSSR, alone or with others, after --first_stage'
  )
  joint: str = _flag_file(
    'pooled items and AdaptSSR together, from a random start'
  )
  classification: str = _flag_file('fine-tuning on classes')
  conversion: str = _flag_file('fine-tuning on conversions')
  ranking: str = _flag_file('fine-tuning on rankings')
  rhos: tuple[str, ...] = flag(
    (),
    'More rows: AdaptSSR with augmentations that change these shares of a '
    'sequence.',
  )
  augmentation_pairs: bool = flag(
    False,
    'More rows: AdaptSSR with one augmentation for each view, all pairs.',
  )

  dry_run: bool = mutable_flag(
    False,
    'Only list the missing runs, and estimate their time from finished runs '
    'of the same kind; nothing but the prepared data is written.',
  )

  def without_effect(self) -> dict[str, str]:
    """The flags of columns that this comparison does not have."""
    if self.modes == (FINE_TUNED,):
      names = ('probe_splits', 'concatenated', 'whole_history')
      return dict.fromkeys(names, 'is for --modes=frozen or frozen_with_bag')
    if FINE_TUNED in self.modes:
      return {}
    why = f'is for --modes={FINE_TUNED}; frozen columns have --probe_splits'
    return {'splits': why, 'crossed': why}

  def data_flags(self) -> dict[str, Any]:
    """The flags of the data set, which all runs share."""
    fields = dataclasses.fields(DataSettings)
    return {field.name: getattr(self, field.name) for field in fields}

  def mutable_names(self) -> set[str]:
    """All but the flags of the data: each run checks its own flags."""
    names = {field.name for field in dataclasses.fields(self)}
    return super().mutable_names() | (names - self.data_flags().keys())
