"""Pre-trains on synthetic users, and probes the user vectors with few labels.

  python -m experiments.quickstart

This is a small comparison: `experiments.compare` with the flags of
configs/quickstart_compare.flags. A logistic regression predicts gender and age
from the frozen vectors of a random encoder, of the first stage of pre-training,
and of the last stage with AdaptSSR, and from a bag of items.
"""

from experiments.flags.small_commands import QuickstartSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.quickstart', QuickstartSettings)

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import compare
from experiments.flags.binder import from_flagfile
from experiments.flags.flag_files import CONFIGS
from experiments.run.process import print_line, print_result_line

# The printed names of methods of the comparison, the best one first.
ROWS = {
  'pretrained': 'pooled_items',
  '+ adaptssr': 'last_stage',
  'bag': 'bag_of_items_whole',
  'random': 'random_encoder',
}
LABELS = (100, 300, 1000)
_SHOWN = 'gender', 300
_WIDTH = 12


def main(settings: QuickstartSettings) -> dict[str, Any]:
  """Runs the comparison, prints it, and returns its `results.json`."""
  folder = pathlib.Path(settings.workdir) / 'compare'
  results = compare.main(
    from_flagfile(
      compare.CompareSettings,
      CONFIGS / 'quickstart_compare.flags',
      workdir=str(folder),
      data_dir=settings.data_dir,
      first_stage=str(CONFIGS / 'quickstart.flags'),
      last_stage=str(CONFIGS / 'quickstart_last.flags'),
      cpu_devices=settings.cpu_devices,
      compilation_cache=settings.compilation_cache,
    )
  )
  task, labels = _SHOWN
  print_line(
    f'\nAccuracy of a logistic regression on frozen vectors, trained on '
    f'{labels} labels\nof {task}: the mean of five splits. Standard errors, '
    f'other numbers of labels and\nage are in {folder / "results.md"}'
  )
  print_result_line(_last_lines(results['cells']))
  return results


def _last_lines(cells: Sequence[Mapping[str, Any]]) -> str:
  """The mean accuracies of each method, over the random splits."""
  task, labels = _SHOWN
  share = sorted({cell['share'] for cell in cells})[LABELS.index(labels)]
  head = f'{"vectors":<{_WIDTH}}{"validation":>{_WIDTH}}{"test":>{_WIDTH}}'
  lines = [head + '   (accuracy)']
  for name, method in ROWS.items():
    found = [
      cell
      for cell in cells
      if (cell['method'], cell['task'], cell['share']) == (method, task, share)
    ]
    means = [
      statistics.mean(cell[split]['accuracy'] for cell in found)
      for split in ('validation', 'test')
    ]
    lines.append(
      f'{name:<{_WIDTH}}' + ''.join(f'{mean:>{_WIDTH}.4f}' for mean in means)
    )
  return '\n'.join(lines)
