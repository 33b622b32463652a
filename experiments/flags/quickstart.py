"""The flags of `experiments.quickstart`."""

import dataclasses

from experiments.flags.binder import flag
from experiments.flags.process import ProcessSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartSettings(ProcessSettings):
  """The flags of the quickstart."""

  workdir: str = flag(
    'runs/quickstart', 'Folder of all runs; finished ones are reused.'
  )
  data_dir: str = flag('data', 'Folder of the prepared data sets.')
