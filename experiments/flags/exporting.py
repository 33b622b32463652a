"""The flags of `experiments.export`."""

import dataclasses

from experiments.flags.binder import flag
from experiments.flags.process import WritingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(WritingSettings):
  """The flags of an export."""

  pretrained: str = flag(
    '', 'Workdir of the run whose encoder it is, or one of its checkpoints.'
  )
  output: str = flag('', 'The folder to write; never overwritten.')
  dtype: str | None = flag(
    None,
    'In which the encoder computes; vectors are float32 [as it was trained].',
    choices=('float32', 'bfloat16'),
  )
