"""The flags of `experiments.similarity`."""

import dataclasses

from experiments.flags.augmentations import AugmentationSettings
from experiments.flags.binder import flag
from experiments.flags.process import ProcessSettings
from experiments.flags.shared import DataSettings
from experiments.flags.speed import EncodingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilaritySettings(
  DataSettings, AugmentationSettings, ProcessSettings, EncodingSettings
):
  """The flags of the similarities."""

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
  num_users: int = flag(0, 'How many, the first of the split; 0: all.', low=0)
  seed: int = flag(0, 'Seed of all that is drawn.', low=0, high=2**32 - 1)
  batch_size: int = flag(128, 'Users of a batch, over all devices.', low=1)
  dropout_rate: float | None = flag(
    None,
    'Share dropped in the encoders [that of each checkpoint].',
    low=0.0,
    high=0.99,
  )
