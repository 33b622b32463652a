"""The sweeps of a comparison as points, and the pictures of a comparison."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison import methods
from experiments.comparison.table import Column, Summary
from experiments.flags.objectives import EDITS as AUGMENTATIONS
from experiments.run.pictures import (
  MissingPlotsError,
  Panel,
  draw_curves,
  draw_heat_maps,
  draw_methods,
  save,
)
from experiments.run.process import print_line


def sweep_points(
  summary: Summary, rhos: Sequence[str], *, pairs: bool
) -> dict[str, list[dict[str, Any]]]:
  """The points of the requested sweeps: `rho`, `augmentation_pairs`."""
  sweeps = {}
  if rhos:
    sweeps['rho'] = [
      {'rho': rho, **point}
      for rho in sorted({float(rho) for rho in rhos})
      for point in _points(summary, *methods.rho_methods([rho]))
    ]
  if pairs:
    sweeps['augmentation_pairs'] = [
      {'first': first, 'second': second, **point}
      for first, second in methods.pairs()
      for point in _points(summary, methods.pair_name(first, second))
    ]
  return sweeps


def _points(summary: Summary, name: str) -> list[dict[str, Any]]:
  """The results of a method in every column."""
  points = []
  for column, found in summary.items():
    low, high = found[name]['interval']
    mean, std = found[name]['mean'], found[name]['std']
    points.append(
      {**column._asdict(), 'mean': mean, 'std': std, 'low': low, 'high': high}
    )
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
  sweeps: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
  """Writes the picture of the table, and one of each sweep, as PNG and SVG.

  Without Matplotlib it only prints that there are no pictures.
  """
  try:
    panels = [
      methods_panel(column, found, titles) for column, found in summary.items()
    ]
    save(draw_methods(panels), folder / 'results')
    if 'rho' in sweeps:
      panels = sweep_panels(sweeps['rho'], 'rho')
      figure = draw_curves(panels, label='share changed, rho')
      save(figure, folder / 'rho')
    if 'augmentation_pairs' in sweeps:
      panels = sweep_panels(sweeps['augmentation_pairs'], 'first', 'second')
      figure = draw_heat_maps(panels, AUGMENTATIONS)
      save(figure, folder / 'augmentation_pairs')
  except MissingPlotsError as error:
    print_line(f'no pictures: {error}')


def methods_panel(
  column: Column,
  found: Mapping[str, Mapping[str, Any]],
  titles: Mapping[str, str],
) -> Panel:
  """A column of the table in percent; nan where the table has a dash."""
  numbers = [
    (found[name]['mean'], *found[name]['interval'])
    if name in found
    else (np.nan,) * 3
    for name in titles
  ]
  means, lows, highs = 100 * np.array(numbers).T
  return Panel(column.title, list(titles.values()), means, lows, highs)


def sweep_panels(
  points: Sequence[Mapping[str, Any]], *keys: str
) -> list[Panel]:
  """A panel for each task, share and mode, in percent, in the order of points.

  Args:
    keys: the coordinates of a point, one or two, which `+` joins in labels.
  """
  columns = [
    Column(*(point[field] for field in Column._fields)) for point in points
  ]
  panels = []
  for column in dict.fromkeys(columns):
    own = [
      point
      for point, found in zip(points, columns, strict=True)
      if found == column
    ]
    where = [[point[key] for key in keys] for point in own]
    panels.append(
      Panel(
        column.title,
        ['+'.join(at) if len(at) > 1 else at[0] for at in where],
        *(
          [100 * point[key] for point in own] for key in ('mean', 'low', 'high')
        ),
      )
    )
  return panels
