"""The flags of `experiments.convert`."""

import dataclasses

from experiments.flags.binder import SettingsError, flag
from experiments.flags.process import WritingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings(WritingSettings):
  """The flags of a conversion."""

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
    2, '--workdir: attention heads, which no weight tells.', low=1
  )
  cosine_pooling: bool = flag(
    False, '--workdir: whether the model had cos_pooling, which none tells.'
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.input or bool(self.workdir) == bool(self.output):
      raise SettingsError(
        'give --input=model.pt --workdir=DIR, or --input=DIR --output=model.pt'
      )
