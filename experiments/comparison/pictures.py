"""The sweeps of a comparison as points, and the pictures of a comparison."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.comparison import methods
from experiments.comparison.table import Summary
from experiments.flags.objectives import EDITS as AUGMENTATIONS
from experiments.run.pictures import grid, plain, save

if TYPE_CHECKING:
  from matplotlib.figure import Figure

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
  """The points as CSV with a header."""
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
  """Writes the picture of the table, and one of each sweep, as PNG and SVG.

  Each has a panel for each column, in percent.
  """
  draws = {'rho': draw_curves, 'augmentation_pairs': draw_heat_maps}
  save(draw_methods(summary, titles), folder / 'results')
  for name, sweep in sweeps.items():
    save(draws[name](summary, sweep), folder / name)


def draw_methods(summary: Summary, titles: Mapping[str, str]) -> Figure:
  """Draws a point with an interval for each method, as in the table."""
  height = 1.2 + 0.3 * len(titles)
  figure, axes = grid([column.title for column in summary], height=height)
  for axis, found in zip(axes, summary.values(), strict=True):
    for row, name in enumerate(titles):
      if name in found:
        mean, low, high = _percent(found[name])
        axis.plot([low, high], [row, row], color='C0')
        axis.plot([mean], [row], 'o', color='C0')
    axis.set_yticks(range(len(titles)), map(plain, titles.values()))
    axis.set_ylim(len(titles) - 0.5, -0.5)
    axis.grid(axis='x', alpha=0.3)
    axis.label_outer()
  return figure


def draw_curves(summary: Summary, sweep: Sweep) -> Figure:
  """Draws the mean over rho as a line, and the interval as a band."""
  figure, axes = grid([column.title for column in summary], height=3)
  rhos = [at['rho'] for at in sweep.values()]
  for axis, found in zip(axes, summary.values(), strict=True):
    means, lows, highs = np.transpose([_percent(found[name]) for name in sweep])
    axis.plot(rhos, means, marker='o', color='C0')
    axis.fill_between(rhos, lows, highs, alpha=0.2, color='C0')
    axis.set_xlabel('share changed, rho')
    axis.grid(alpha=0.3)
  return figure


def draw_heat_maps(summary: Summary, sweep: Sweep) -> Figure:
  """Draws the means of pairs of augmentations as symmetric heat maps."""
  figure, axes = grid([column.title for column in summary], height=3)
  for axis, found in zip(axes, summary.values(), strict=True):
    table = np.full((len(AUGMENTATIONS), len(AUGMENTATIONS)), np.nan)
    for name, at in sweep.items():
      row, column = map(AUGMENTATIONS.index, at.values())
      table[row, column] = table[column, row] = _percent(found[name])[0]
    image = axis.imshow(table, cmap='viridis')
    figure.colorbar(image, ax=axis, shrink=0.8)
    for (row, column), value in np.ndenumerate(table):
      text = axis.text(column, row, f'{value:.2f}', ha='center', va='center')
      # Readable on the darkest and on the brightest cell.
      text.set_bbox({'facecolor': 'white', 'alpha': 0.7, 'edgecolor': 'none'})
    axis.set_xticks(range(len(AUGMENTATIONS)), AUGMENTATIONS)
    axis.set_yticks(range(len(AUGMENTATIONS)), AUGMENTATIONS)
  return figure


def _percent(values: Mapping[str, Any]) -> np.ndarray:
  """The mean and the ends of its interval, in percent."""
  return 100 * np.array([values['mean'], *values['interval']])
