"""How soon frozen vectors are as good as the bag of items."""

import pathlib
from collections.abc import Sequence

from experiments.flags.binder import SettingsError
from experiments.reporting.runs import Run
from experiments.run.outputs import new_file
from experiments.run.pictures import Lines, draw_lines

_PROBE = 'validation_probe_'


def draw_minutes(runs: Sequence[Run], path: pathlib.Path) -> list[str]:
  """Draws what vectors of each epoch are worth, over seconds of training.

  Args:
    runs: those of pre-training are curves, and those with a result of the same
      task, as a baseline has it, are level lines. All is of validation rows.

  Returns:
    A line for each curve: its best score, and the seconds after which it first
    had that of each level line.
  """
  panels = _panels(runs)
  if not panels:
    raise SettingsError(
      '--picture: no run has logged probes of its vectors and seconds: '
      'pre-train with --select_by=probe --log_seconds'
    )
  figure = draw_lines(panels, label='seconds of training')
  # Matplotlib raises a ValueError for a format that it does not know.
  errors = (OSError, ValueError)
  with new_file(path, flag='picture', errors=errors) as aside:
    figure.savefig(aside, format=path.suffix[1:] or None)
  lines = []
  for panel in panels:
    for name, points in panel.lines.items():
      best = max(score for _, score in points)
      parts = [f'{panel.title}, {name}: best {best:.4f}'] + [
        f'{other} ({level:.4f}) {_first(points, level)}'
        for other, level in panel.levels.items()
      ]
      lines.append('; '.join(parts))
  return lines


def _panels(runs: Sequence[Run]) -> list[Lines]:
  """A panel for each task of a data set that was probed."""
  by_dataset: dict[str, list[Run]] = {}
  for run in runs:
    by_dataset.setdefault(run.flags.get('dataset', ''), []).append(run)
  panels = []
  for dataset, own in by_dataset.items():
    prefix = f'{dataset}, ' if len(by_dataset) > 1 else ''
    names = {name for run in own for line in run.lines for name in line}
    for probe in sorted(name for name in names if name.startswith(_PROBE)):
      task = probe.removeprefix(_PROBE)
      lines = {
        run.name: [
          (line['seconds'], line[probe])
          for line in run.lines
          if {'seconds', probe} <= line.keys()
        ]
        for run in own
      }
      lines = {name: points for name, points in lines.items() if points}
      if lines:
        panels.append(Lines(prefix + task, lines, _levels(own, task)))
  return panels


def _levels(runs: Sequence[Run], task: str) -> dict[str, float]:
  """What results of the task say of the validation rows, by name."""
  found = {
    run.name: run.result.get('validation', {})
    for run in runs
    if run.result.get('task') == task
  }
  # The probe of a conversion, which has no accuracy, is judged by its AUC.
  scores = {
    n: score.get('accuracy', score.get('auc')) for n, score in found.items()
  }
  return {name: score for name, score in scores.items() if score is not None}


def _first(points: Sequence[tuple[float, float]], level: float) -> str:
  reached = [seconds for seconds, score in points if score >= level]
  return f'reached after {reached[0]:.0f} s' if reached else 'not reached'
