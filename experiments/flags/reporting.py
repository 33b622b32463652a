"""The flags of `experiments.report`."""

import dataclasses
from typing import ClassVar

from experiments.flags.binder import SettingsError, flag
from experiments.flags.process import QuietSettings
from experiments.flags.shared import DataSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings(DataSettings, QuietSettings):
  """The flags of a report."""

  takes_words: ClassVar[str] = 'runs'

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
