"""The sweeps of a comparison as points, and the pictures of a comparison."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison import methods
from experiments.comparison.table import Summary
from experiments.flags.objectives import EDITS as AUGMENTATIONS
from experiments.run.pictures import (
  Panel,
  draw_curves,
  draw_heat_maps,
  draw_methods,
  save,
)

# The coordinates of each method of a sweep, by their names.
Sweep = Mapping[str, Mapping[str, Any]]


def requested_sweeps(rhos: Sequence[str], *, pairs: bool) -> dict[str, Sweep]:
  """The methods of the requested sweeps, `rho` and `augmentation_pairs`."""
  sweeps = {}
  if rhos:
    sweeps['rho'] = {
      name: {'rho': rho}
      for rho in sorted({float(rho) for rho in rhos})
      for name in methods.rho_methods([rho])
    }
  if pairs:
    sweeps['augmentation_pairs'] = {
      methods.pair_name(first, second): {'first': first, 'second': second}
      for first, second in methods.pairs()
    }
  return sweeps


def sweep_points(summary: Summary, sweep: Sweep) -> list[dict[str, Any]]:
  """The result of each method of a sweep in every column."""
  points = []
  for name, coordinates in sweep.items():
    for column, found in summary.items():
      low, high = found[name]['interval']
      numbers = {key: found[name][key] for key in ('mean', 'std')}
      numbers |= {'low': low, 'high': high}
      points.append({**coordinates, **column._asdict(), **numbers})
  return points


def as_csv(points: Sequence[Mapping[str, Any]]) -> str:
  r"""The points as CSV with a header."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(points[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(points)
  return text.getvalue()


def draw_all(
  folder: pathlib.Path,
  summary: Summary,
  titles: Mapping[str, str],
  sweeps: Mapping[str, Sweep],
) -> None:
  """Writes the picture of the table, and one of each sweep, as PNG and SVG."""
  save(draw_methods(panels_of(summary, titles)), folder / 'results')
  if 'rho' in sweeps:
    labels = {name: at['rho'] for name, at in sweeps['rho'].items()}
    figure = draw_curves(panels_of(summary, labels), label='share changed, rho')
    save(figure, folder / 'rho')
  if 'augmentation_pairs' in sweeps:
    pairs = sweeps['augmentation_pairs']
    labels = {name: '+'.join(at.values()) for name, at in pairs.items()}
    figure = draw_heat_maps(panels_of(summary, labels), AUGMENTATIONS)
    save(figure, folder / 'augmentation_pairs')


def panels_of(
  summary: Summary, labels: Mapping[str, str | float]
) -> list[Panel]:
  """A panel for each column, in percent; nan where the table has a dash.

  Args:
    labels: the labels of the methods to show, by their names.
  """
  panels = []
  for column, found in summary.items():
    numbers = [
      (found[name]['mean'], *found[name]['interval'])
      if name in found
      else (np.nan,) * 3
      for name in labels
    ]
    means, lows, highs = 100 * np.array(numbers).T
    panels.append(
      Panel(column.title, list(labels.values()), means, lows, highs)
    )
  return panels
