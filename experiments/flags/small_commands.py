"""The flags of commands that train no encoder, such as embed and report."""

import dataclasses
import pathlib
import re

from experiments.flags.binder import Settings, SettingsError, flag, mutable_flag
from experiments.flags.objectives import AugmentationSettings
from experiments.flags.process import (
  DistributedSettings,
  EncodingSettings,
  HistorySettings,
  ProcessSettings,
  QuietSettings,
  TableSettings,
  UserVectorSettings,
)
from experiments.flags.shared import (
  DataSettings,
  LabelSettings,
  SplitSettings,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
  """A pre-trained encoder, and how it computes."""

  pretrained: str = flag(
    '', 'Workdir of the run whose encoder to use, or one of its checkpoints.'
  )
  dtype: str | None = flag(
    None,
    'Dtype of the computation in the encoder; vectors are float32 [as it was '
    'trained].',
    choices=('float32', 'bfloat16'),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedSettings(
  UserVectorSettings,
  ModelSettings,
  DataSettings,
  DistributedSettings,
  EncodingSettings,
  TableSettings,
):
  """The flags of `experiments.embed`."""

  is_resumable = False

  dataset: str = flag(
    '',
    'The data set, NAME or NAME/SIZE, as for experiments.pretrain [the tables '
    'of --events, without preparing them; else the data set of the run].',
  )
  output: str = flag(
    '', 'The file to write, FILE.parquet or FILE.npz; never overwritten.'
  )
  item_vectors: str = flag(
    '', 'A file for the vectors of the items, in the format of --output.'
  )
  neighbours: int = flag(
    0, 'Number of nearest users to write for each user.', low=0
  )
  neighbours_output: str = flag(
    '', 'A file for the nearest users, FILE.parquet or FILE.npz.'
  )
  task: str = flag(
    'pretrain',
    'The task whose users to encode; pretrain: all users, with all behaviours.',
  )
  split: str = flag(
    'all',
    'The split whose users to encode.',
    choices=('all', 'train', 'validation', 'test'),
  )
  part: str = flag(
    '',
    'I/N: encode only the I-th of N equal parts of the users, from 1/N to N/N. '
    'Give each part its own --output.',
  )
  batch_size: int = flag(512, 'Users per batch, over all devices.', low=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    found = re.fullmatch('([0-9]+)/([0-9]+)', self.part)
    if self.part and not (found and 1 <= int(found[1]) <= int(found[2])):
      raise SettingsError(
        f'--part must be I/N, from 1/N to N/N, such as 2/8, not {self.part!r}'
      )

  @property
  def workdir(self) -> str:
    """The folder of the run, also if --pretrained is one of its checkpoints."""
    folder = pathlib.Path(self.pretrained).absolute()
    for above in (folder.parent, folder):
      if above.name == 'checkpoints':
        return str(above.parent)
    return str(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineSettings(SplitSettings, QuietSettings, LabelSettings):
  """The flags of `experiments.baselines`."""

  is_resumable = False

  workdir: str = mutable_flag('runs/baseline', 'Folder of the result.')
  method: str = flag(
    'bag_of_items',
    'The baseline.',
    choices=('bag_of_items', 'bag_svd', 'most_popular', 'last_item'),
  )
  task: str = flag('gender', 'The task: gender, age, click, ...')
  max_length: int = flag(
    100, 'Number of last behaviours of a user that are read; 0: all.', low=0
  )
  num_components: int | None = flag(
    None, 'bag_svd: number of features of a user [64].', low=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings, HistorySettings, QuietSettings):
  """The flags of `experiments.export`."""

  is_resumable = False

  output: str = flag('', 'The folder to write; never overwritten.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartSettings(ProcessSettings):
  """The flags of `experiments.quickstart`."""

  workdir: str = flag(
    'runs/quickstart', 'Folder of all runs; finished ones are reused.'
  )
  data_dir: str = flag('data', 'Folder of the prepared data sets.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilaritySettings(
  DataSettings, AugmentationSettings, ProcessSettings, EncodingSettings
):
  """The flags of `experiments.similarity`."""

  is_resumable = False

  checkpoints: tuple[str, ...] = flag(
    (),
    'Workdirs of the runs whose encoders to compare, or checkpoints.',
    may_repeat=True,
  )
  names: tuple[str, ...] = flag(
    (),
    'Names for --checkpoints [the name of each folder; with that of its parent '
    'if two are the same].',
    may_repeat=True,
  )
  workdir: str = mutable_flag(
    'runs/similarity', 'Folder for the numbers and the picture.'
  )
  split: str = flag(
    'validation',
    'The split whose users to compare.',
    choices=('train', 'validation'),
  )
  seed: int = flag(0, 'Seed of all random draws.', low=0, high=2**32 - 1)
  batch_size: int = flag(128, 'Users per batch, over all devices.', low=1)
  dropout_rate: float | None = flag(
    None,
    'Dropout rate of the encoders [that of each checkpoint].',
    low=0.0,
    high=0.99,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings(QuietSettings):
  """The flags of `experiments.convert`."""

  is_resumable = False

  input: str = flag(
    '',
    'With --workdir: the state dict of a model of the public code, written by '
    'torch.save, or by safetensors if its name ends in .safetensors. With '
    '--output: the workdir of a run, or one of its checkpoints.',
  )
  workdir: str = flag(
    '', 'The folder of the new run, for --pretrained and --init_from.'
  )
  output: str = flag(
    '', 'The state dict to write: NAME.safetensors, else by torch.save.'
  )
  vocabulary: str = flag(
    '',
    'Text file of raw item ids, that of index i in line i, from 1. It is read '
    'for --workdir, and written with --output [the indices are the ids].',
  )
  num_heads: int = flag(
    2,
    '--workdir: number of attention heads, which the weights do not show.',
    low=1,
  )
  cosine_pooling: bool = flag(
    False,
    '--workdir: whether the model has cos_pooling, which the weights do not '
    'show.',
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.input or bool(self.workdir) == bool(self.output):
      raise SettingsError(
        'give --input=model.pt --workdir=DIR, or --input=DIR --output=model.pt'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings(DataSettings, QuietSettings):
  """The flags of `experiments.report`."""

  takes_words = 'runs'
  is_resumable = False

  runs: tuple[str, ...] = flag(
    (),
    'Folders of runs, comparisons and similarities, also without --runs=.',
    may_repeat=True,
  )
  output: str = flag(
    '',
    'The page to write, FILE.html [report.html in the first folder]. It may '
    'replace an earlier page of this command, but no other file.',
  )
  picture: str = flag(
    '',
    'A file to draw, FILE.svg or FILE.png, never overwritten: the score of '
    'frozen vectors against seconds of pre-training, for runs with '
    '--select_by=probe --log_seconds, and the scores of baselines in --runs.',
  )
  vectors: tuple[str, ...] = flag(
    (),
    'Files of user vectors to show, written by experiments.embed.',
    may_repeat=True,
  )
  map: str = flag(
    'pca',
    'How vectors are mapped to the plane. umap needs pip install '
    '"adaptssr_jax[umap]".',
    choices=('pca', 'umap'),
  )
  dataset: str = flag(
    '', 'The data set of --task, NAME or NAME/SIZE [that of the first run].'
  )
  task: str = flag(
    '', 'A task with classes, such as gender, by which users are coloured.'
  )
  users: tuple[str, ...] = flag(
    (), 'Raw ids of users whose nearest users to show [the first five].'
  )
  follow: bool = flag(
    False,
    'Write the page again whenever a run logs something, until all runs have '
    'ended, or until Ctrl-C. A browser reloads the page by itself.',
  )
  follow_every: float = flag(
    5.0, '--follow: seconds between two checks of the runs.', above=0.0
  )

  def without_effect(self) -> dict[str, str]:
    """The flags of following and of the task, without either."""
    follows = {} if self.follow else {'follow_every': 'is for --follow'}
    return follows | ({} if self.task else {'dataset': 'is for --task'})

  def __post_init__(self) -> None:
    super().__post_init__()
    if not (self.runs or self.vectors):
      raise SettingsError(
        'nothing to show: give the folders of runs, or --vectors=FILE'
      )
    if self.output and not self.output.endswith('.html'):
      raise SettingsError(
        f'--output={self.output}: give a file that ends in .html'
      )
