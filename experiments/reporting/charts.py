"""The charts of the page, drawn by Matplotlib as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.run.pictures import new_figure

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Of curves and groups of points, by their index.
COLORS = ('#0072b2', '#d55e00', '#00805c', '#b3509a')
COLORS += ('#96720a', '#5b5bd6', '#b3261e', '#6b7280')
# Of lines and of dotted curves: of the first of a colour, and of later ones.
_STYLES = {False: ('-', '--'), True: (':', '-.')}
# More points of a curve would not be visible.
_MOST_POINTS = 400
_SIZE = (4.2, 2.6)  # in inches


class Curve(NamedTuple):
  """A curve of a chart."""

  color: int  # an index; after the last of COLORS they repeat, dashed
  x: Sequence[float]  # ascending
  y: Sequence[float]
  dotted: bool  # whether to draw its points, on a dotted line


def as_svg(figure: Figure) -> str:
  """The figure as an element of an HTML page; equal figures give equal text."""
  import matplotlib

  file = io.StringIO()
  keys = ('Creator', 'Date', 'Format', 'Type')
  style = {'svg.fonttype': 'none', 'svg.hashsalt': 'adaptssr_jax'}
  with matplotlib.rc_context(style):
    figure.savefig(
      file,
      format='svg',
      transparent=True,
      dpi=300,
      metadata=dict.fromkeys(keys),
    )
  svg = file.getvalue()
  # Groups are numbered from 1 in each figure, and nothing refers to their ids.
  # Those of markers and clip paths stay: equal ids have equal content.
  return re.sub(r' id="[\w.]+_\d+"', '', svg[svg.index('<svg') :])


def draw_chart(curves: Sequence[Curve], *, label: str) -> Figure:
  """Draws curves in a small chart.

  Args:
    curves: those without points are left out.
    label: the label of the horizontal axis.
  """
  figure = new_figure(*_SIZE)
  axis = figure.add_subplot()
  for curve in curves:
    repeats, color = divmod(curve.color, len(COLORS))
    kept = evenly_spaced(len(curve.x), _MOST_POINTS)
    axis.plot(
      np.asarray(curve.x)[kept],
      np.asarray(curve.y)[kept],
      color=COLORS[color],
      linestyle=_STYLES[curve.dotted][min(repeats, 1)],
      linewidth=1,
      marker='.' if curve.dotted or len(kept) == 1 else '',
    )
  axis.ticklabel_format(useOffset=False)
  axis.locator_params(axis='x', nbins=5)
  axis.tick_params(labelsize=8)
  axis.set_xlabel(label, fontsize=8)
  axis.grid(alpha=0.3)
  return figure


def draw_map(points: np.ndarray, groups: Sequence[np.ndarray]) -> Figure:
  """Draws points in the plane, coloured by group.

  Args:
    points: [points, 2].
    groups: the rows of the points of each group. The largest group is drawn
      first.
  """
  figure = new_figure(*_SIZE)
  axis = figure.add_subplot()
  axis.set_axis_off()
  largest_first = sorted(enumerate(groups), key=lambda group: -len(group[1]))
  for color, rows in largest_first:
    # As pixels, since thousands of elements would make a page large.
    axis.plot(
      *points[rows].T,
      '.',
      color=COLORS[color],
      markersize=3,
      markeredgewidth=0,
      rasterized=True,
    )
  return figure


def evenly_spaced(count: int, most: int) -> np.ndarray:
  """At most `most` indices below `count`, from the first to the last one.

  Example:
    >>> evenly_spaced(9, 3).tolist(), evenly_spaced(2, 3).tolist()
    ([0, 4, 8], [0, 1])
  """
  return np.linspace(0, count - 1, min(count, most)).astype(int)
