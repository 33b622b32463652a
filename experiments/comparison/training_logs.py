"""What the pre-training runs of a comparison logged."""

from collections.abc import Mapping
from typing import Any

from experiments.comparison.grid import Grid, Pretraining
from experiments.pretraining.collapse import collapse_warning
from experiments.run.logs import read_metrics


def steps_taken(grid: Grid, run: Pretraining) -> int:
  """The updates that a finished pre-training run made."""
  return _logged(grid, run)[-1]['step']


def best_validation(grid: Grid, run: Pretraining) -> dict[str, float]:
  """What was logged of the state which the rest starts from.

  Where the loss on the validation users was least, of the states that have not
  collapsed; of the last state if all of them have.
  """
  lines = [line for line in _logged(grid, run) if 'validation_loss' in line]
  sound = [line for line in lines if not collapse_of(grid, run.method, line)]
  return min(
    sound or lines[-1:], key=lambda line: line['validation_loss'], default={}
  )


def collapse_of(grid: Grid, method: str, line: Mapping[str, float]) -> str:
  """What is wrong with the user vectors by a line of `metrics.jsonl`, if so."""
  values = {
    name.removeprefix('validation_'): value for name, value in line.items()
  }
  if 'mean_cosine' not in values:
    return ''
  settings = grid.pretraining[grid.method(method).flags]
  return collapse_warning(values, objective=settings.objective)


def _logged(grid: Grid, run: Pretraining) -> list[dict[str, Any]]:
  return read_metrics(grid.folder / run.name)
