"""The flags of `experiments.baselines`."""

import dataclasses

from experiments.flags.binder import flag
from experiments.flags.process import QuietSettings
from experiments.flags.shared import SplitSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineSettings(SplitSettings, QuietSettings):
  """The flags of a baseline."""

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
  split_seed: int = flag(
    0, 'Seed by which the labelled rows are split; 0: as stored.', low=0
  )
  train_users: int = flag(
    0,
    'Labelled rows to train on, the first of the shuffled split; 0: all.',
    low=0,
  )
