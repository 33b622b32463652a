"""Figures with a grid of panels: lines, and histograms of similarities.

Matplotlib is imported when a figure is made, so that commands start quickly.
"""

from __future__ import annotations

import pathlib
import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adaptssr_jax.files import atomic_path
from experiments.run.workdir import writing

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_PANELS_A_ROW = 4
_LABELS = {
  'dropout': 'second dropout pass',
  'crop': 'crop',
  'mask': 'mask',
  'reorder': 'reorder',
  'other': 'other users',
}


class Lines(NamedTuple):
  """Several lines of one panel."""

  title: str  # of the panel
  # (x, y) of the points of each, by name; nan is drawn as a cross below.
  lines: Mapping[str, Sequence[tuple[float, float]]]
  # y of lines across the panel, by name.
  levels: Mapping[str, float] = types.MappingProxyType({})


def new_figure(width: float, height: float) -> Figure:
  """Makes an empty figure, sized in inches, that needs no display."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout='constrained')


def save(
  figure: Figure, stem: pathlib.Path, endings: Sequence[str] = ('png', 'svg')
) -> None:
  """Writes `stem.png` and `stem.svg` atomically."""
  for ending in endings:
    path = stem.with_name(f'{stem.name}.{ending}')
    with writing(path.parent), atomic_path(path) as temporary:
      figure.savefig(temporary, format=ending, dpi=150)


def grid(titles: Sequence[str], *, height: float) -> tuple[Figure, list[Axes]]:
  """A figure with a grid of titled panels."""
  columns = min(len(titles), _PANELS_A_ROW)
  rows = -(-len(titles) // columns)
  figure = new_figure(1 + 3.2 * columns, height * rows)
  axes = []
  for number, title in enumerate(titles, 1):
    axis = figure.add_subplot(rows, columns, number)
    # A dollar sign in a name does not begin a formula.
    title = textwrap.fill(title, 28)
    axis.set_title(title, fontsize='medium', parse_math=False)
    axes.append(axis)
  return figure, axes


def plain(name: str) -> str:
  r"""A name as a label: a dollar sign does not begin a formula.

  Example:
    >>> print(plain('a$b$'))
    a\$b\$
  """
  return name.replace('$', r'\$')


def draw_lines(
  panels: Sequence[Lines], *, label: str, sizes: Sequence[int] = ()
) -> Figure:
  """Draws lines in one or several panels, with one legend.

  Args:
    panels: all with the lines of the same names in the same order.
    label: the label of the horizontal axes.
    sizes: ticks of the horizontal axes, which are then logarithmic; vertical
      axes then start at 0.
  """
  figure, axes = grid([panel.title for panel in panels], height=3.4)
  for axis, panel in zip(axes, panels, strict=True):
    for color, (name, points) in enumerate(panel.lines.items()):
      x, y = np.array(points, float).T
      axis.plot(x, y, marker='.', color=f'C{color}', label=plain(name))
      left_out = x[np.isnan(y)]
      bottom = axis.get_xaxis_transform()
      axis.plot(left_out, 0 * left_out + 0.03, 'rx', transform=bottom)
    for index, (name, level) in enumerate(panel.levels.items()):
      style = ('--', ':', '-.')[index % 3]
      axis.axhline(level, color='black', linestyle=style, label=plain(name))
    if sizes:
      axis.set_xscale('log')
      axis.set_xticks(sizes, [f'{size:,}' for size in sizes])
      axis.minorticks_off()
      axis.set_ylim(bottom=0)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)
  pairs = (zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes)
  keys = {name: handle for of_axis in pairs for handle, name in of_axis}
  if len(keys) > 1:
    figure.legend(
      keys.values(), keys.keys(), loc='outside lower center', ncols=3
    )
  return figure


def draw_similarities(
  methods: Mapping[str, Mapping[str, Any]], edges: Sequence[float]
) -> Figure:
  """Draws the histograms of `similarity.json`, a panel for each method.

  Args:
    methods: the summaries of each method, by kind of view.
    edges: the edges of the bins of all histograms.
  """
  figure, axes = grid([*methods], height=3)
  # The leftmost value of all panels; to the left of it they are empty.
  low = edges[
    min(
      np.flatnonzero(summary['histogram'])[0]
      for kinds in methods.values()
      for summary in kinds.values()
    )
  ]
  for axis, kinds in zip(axes, methods.values(), strict=True):
    for color, (kind, summary) in enumerate(kinds.items()):
      counts = np.array(summary['histogram'])
      # Each has a height of 1: a sharp peak would flatten all others.
      heights = counts / counts.max()
      axis.stairs(heights, edges, fill=True, alpha=0.1, color=f'C{color}')
      axis.stairs(heights, edges, color=f'C{color}', label=_LABELS[kind])
    axis.set_xlim(low, 1)
    axis.set_xlabel('cosine similarity')
    axis.set_ylabel('density, peak = 1')
  figure.legend(
    *axis.get_legend_handles_labels(),
    loc='outside lower center',
    ncols=3 * min(len(axes), 2),
    fontsize=8,
  )
  return figure
