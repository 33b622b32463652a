"""The flags of the commands that train nothing.

That is baselines, convert, embed, export, quickstart, report and similarity.
"""

import dataclasses
import pathlib
import re

from experiments.flags.binder import SettingsError, flag
from experiments.flags.objectives import AugmentationSettings
from experiments.flags.process import (
  DistributedSettings,
  EncodingSettings,
  ProcessSettings,
  QuietSettings,
  TableSettings,
)
from experiments.flags.shared import (
  DataSettings,
  SplitSettings,
  concatenate_flag,
  split_seed_flag,
  train_users_flag,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedSettings(
  DataSettings,
  DistributedSettings,
  EncodingSettings,
  TableSettings,
):
  """The flags of writing vectors."""

  is_resumable = False

  dataset: str = flag(
    '',
    'The data set, NAME or NAME/SIZE, as of experiments.pretrain [the tables '
    f'of --events without preparing them, else {DataSettings.dataset}].',
  )
  pretrained: str = flag(
    '', 'Workdir of the run whose encoder it is, or one of its checkpoints.'
  )
  concatenate: tuple[str, ...] = concatenate_flag()
  output: str = flag(
    '', 'The file to write, FILE.parquet or FILE.npz; never overwritten.'
  )
  item_vectors: str = flag(
    '', 'A file to write the vectors of the items to, as --output.'
  )
  neighbours: int = flag(
    0, 'How many nearest users of each to write to --neighbours_output.', low=0
  )
  neighbours_output: str = flag(
    '', 'A file to write the nearest users to, FILE.parquet or FILE.npz.'
  )
  task: str = flag(
    'pretrain',
    'The task whose users to encode; pretrain: all users, with all behaviours.',
  )
  split: str = flag(
    'all', 'Whose users.', choices=('all', 'train', 'validation', 'test')
  )
  part: str = flag(
    '',
    'I/N: encode only the I-th of N equal parts of the users, from 1/N to N/N. '
    'Give each part its own --output.',
  )
  batch_size: int = flag(512, 'Users of a batch, over all devices.', low=1)
  dtype: str | None = flag(
    None,
    'In which the encoder computes; vectors are float32 [as it was trained].',
    choices=('float32', 'bfloat16'),
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    found = re.fullmatch('([0-9]+)/([0-9]+)', self.part)
    if self.part and not (found and 1 <= int(found[1]) <= int(found[2])):
      raise SettingsError(
        f'--part must be I/N, from 1/N to N/N, such as 2/8, not {self.part!r}'
      )

  @property
  def workdir(self) -> str:
    """The folder of the run, though one of its checkpoints may be given."""
    folder = pathlib.Path(self.pretrained).absolute()
    for above in (folder.parent, folder):
      if above.name == 'checkpoints':
        return str(above.parent)
    return str(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineSettings(SplitSettings, QuietSettings):
  """The flags of a baseline."""

  is_resumable = False

  workdir: str = flag(
    'runs/baseline', 'Folder of the result.', mutable_on_resume=True
  )
  method: str = flag(
    'bag_of_items',
    'Which baseline.',
    choices=('bag_of_items', 'bag_svd', 'most_popular', 'last_item'),
  )
  task: str = flag('gender', 'The task: gender, age, click, ...')
  max_length: int = flag(
    100, 'Behaviours seen of a user, the last ones; 0: all of them.', low=0
  )
  num_components: int | None = flag(
    None, 'bag_svd: features of a user [64].', low=1
  )
  split_seed: int = split_seed_flag()
  train_users: int = train_users_flag()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(QuietSettings):
  """The flags of an export."""

  is_resumable = False

  pretrained: str = flag(
    '', 'Workdir of the run whose encoder it is, or one of its checkpoints.'
  )
  output: str = flag('', 'The folder to write; never overwritten.')
  dtype: str | None = flag(
    None,
    'In which the encoder computes; vectors are float32 [as it was trained].',
    choices=('float32', 'bfloat16'),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartSettings(ProcessSettings):
  """The flags of the quickstart."""

  workdir: str = flag(
    'runs/quickstart', 'Folder of all runs; finished ones are reused.'
  )
  data_dir: str = flag('data', 'Folder of the prepared data sets.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilaritySettings(
  DataSettings, AugmentationSettings, ProcessSettings, EncodingSettings
):
  """The flags of the similarities."""

  is_resumable = False

  checkpoints: tuple[str, ...] = flag(
    (), 'Workdirs of the runs whose encoders are compared, or checkpoints.'
  )
  names: tuple[str, ...] = flag(
    (),
    'What to call each of --checkpoints [the name of its folder, and of that '
    'above where two are the same].',
  )
  workdir: str = flag(
    'runs/similarity',
    'Folder of the numbers and the picture.',
    mutable_on_resume=True,
  )
  split: str = flag(
    'validation', 'Whose users.', choices=('train', 'validation')
  )
  seed: int = flag(0, 'Seed of all that is drawn.', low=0, high=2**32 - 1)
  batch_size: int = flag(128, 'Users of a batch, over all devices.', low=1)
  dropout_rate: float | None = flag(
    None,
    'Share dropped in the encoders [that of each checkpoint].',
    low=0.0,
    high=0.99,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings(QuietSettings):
  """The flags of a conversion."""

  is_resumable = False

  input: str = flag(
    '',
    'The state dict of a model of the public code, as torch.save or '
    'safetensors (*.safetensors) wrote it; with --output the workdir of a run, '
    'or one of its checkpoints.',
  )
  workdir: str = flag(
    '', 'The folder of a run to write, for --pretrained and --init_from.'
  )
  output: str = flag(
    '', 'The state dict to write: NAME.safetensors, or of torch.save.'
  )
  vocabulary: str = flag(
    '',
    'Text file of raw item ids, that of index i in line i, from 1: is read for '
    '--workdir, written with --output [the indices are the ids].',
  )
  num_heads: int = flag(
    2, '--workdir: attention heads, which no weight shows.', low=1
  )
  cosine_pooling: bool = flag(
    False,
    '--workdir: whether the model had cos_pooling, which no weight shows.',
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.input or bool(self.workdir) == bool(self.output):
      raise SettingsError(
        'give --input=model.pt --workdir=DIR, or --input=DIR --output=model.pt'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings(DataSettings, QuietSettings):
  """The flags of a report."""

  takes_words = 'runs'
  is_resumable = False

  runs: tuple[str, ...] = flag(
    (),
    'Folders to show, which may also be given without this flag: the workdirs '
    'of runs, of comparisons and of similarities.',
  )
  output: str = flag(
    '',
    'The page to write, FILE.html [report.html in the first folder]. Only a '
    'page of this command is overwritten.',
  )
  picture: str = flag(
    '',
    'A file to draw, FILE.svg or FILE.png, never overwritten: how good frozen '
    'vectors are after so many seconds of pre-training, of runs with '
    '--select_by=probe --log_seconds, and what baselines among --runs reach.',
  )
  vectors: tuple[str, ...] = flag(
    (), 'Files of user vectors to show, as experiments.embed writes them.'
  )
  map: str = flag(
    'pca',
    'How vectors become points of the plane. umap needs pip install '
    '"adaptssr_jax[umap]".',
    choices=('pca', 'umap'),
  )
  dataset: str = flag(
    '', 'Of --task, NAME or NAME/SIZE [that of the first run].'
  )
  task: str = flag(
    '', 'A task with classes, such as gender, which colour the users.'
  )
  users: tuple[str, ...] = flag(
    (), 'Raw ids of the users whose nearest users are shown [the first five].'
  )
  follow: bool = flag(
    False,
    'Write the page again whenever a run logs something, until all runs have '
    'ended, or until Ctrl-C. A browser that shows it shows it anew.',
  )
  follow_every: float = flag(
    5.0, '--follow: seconds between two looks at the runs.', above=0.0
  )

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
