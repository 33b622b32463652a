"""Pre-trains on made users, fine-tunes twice, and compares.

  python -m experiments.quickstart

The two fine-tuning runs differ in nothing but where they start: from the
pre-trained encoder, and at random.
"""

import dataclasses
import pathlib

from experiments import finetune, pretrain
from experiments.process import ProcessSettings
from experiments.settings import flag, from_flagfile, run

_CONFIGS = pathlib.Path(__file__).parent / 'configs'


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartSettings(ProcessSettings):
  """The flags of the quickstart."""

  workdir: str = flag(
    'runs/quickstart', 'Folder of the three runs; finished ones are reused.'
  )
  data_dir: str = flag('data', 'Folder of the prepared data sets.')


def main(settings: QuickstartSettings) -> dict[str, dict]:
  """Runs all three, prints the comparison, and returns both results."""
  folder = pathlib.Path(settings.workdir)
  pretrained = folder / 'pretrain'
  pretrain.main(
    from_flagfile(
      pretrain.PretrainSettings,
      _CONFIGS / 'quickstart.flags',
      workdir=str(pretrained),
      data_dir=settings.data_dir,
    )
  )
  results = {
    start: finetune.main(
      from_flagfile(
        finetune.FinetuneSettings,
        _CONFIGS / 'quickstart_gender.flags',
        workdir=str(folder / f'gender_from_{start}'),
        data_dir=settings.data_dir,
        pretrained=source,
      )
    )
    for start, source in (('pretrained', str(pretrained)), ('random', ''))
  }
  print(f'\n{"start":<12}{"validation":>12}{"test":>12}   (accuracy)')
  for start, result in results.items():
    scores = [result[split]['accuracy'] for split in ('validation', 'test')]
    print(f'{start:<12}' + ''.join(f'{score:>12.4f}' for score in scores))
  return results


if __name__ == '__main__':
  run(main, QuickstartSettings)
