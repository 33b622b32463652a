"""Charts as SVG, with the colours and fonts of the page.

A chart is drawn 360 wide and 220 high, and scaled to its column.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from experiments.reporting.elements import color, tag

_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 36
# More points would not be visible.
_MOST_POINTS = 400
MOST_USERS = 3000


class Line(NamedTuple):
  """A curve of a chart."""

  name: str
  color_index: int
  x: Sequence[float]  # ascending
  y: Sequence[float]
  dotted: bool = False  # whether to draw its points, on a thin line


def curves(label: str, x_label: str, lines: Sequence[Line]) -> Element:
  """A chart of several curves."""
  xs, ys = (np.concatenate([line[at] for line in lines]) for at in (2, 3))
  axes = _Axes(xs, ys)
  parts = []
  for line in lines:
    kept = evenly_spaced(len(line.x), _MOST_POINTS)
    xy = axes.at(np.asarray(line.x)[kept], np.asarray(line.y)[kept])
    points = [*zip(*xy, strict=True)]
    path = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points)
    name = f'{line.name}: {line.y[-1]:.4g}'
    style = 'thin' if line.dotted else 'line'
    if line.dotted or len(points) == 1:
      dots = ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in points)
      parts.append(_path(dots, name, f'dots {color(line.color_index)}'))
    parts.append(_path(path, name, f'{style} {color(line.color_index)}'))
  return _chart(label, *axes.frame(x_label), *parts)


def histogram_chart(
  label: str,
  x_label: str,
  edges: Sequence[float],
  counts: Mapping[str, Sequence[int]],
) -> Element:
  """A chart of histograms, each scaled to the height of the chart.

  Args:
    edges: the edges of the bins, one more than there are bins.
    counts: the counts in the bins of each histogram, by name.
  """
  # Bins on the left that are empty in all histograms are left out.
  first = np.flatnonzero(np.sum([*counts.values()], axis=0))[0]
  x = np.repeat(edges[first:], 2)
  lines = []
  for index, (name, heights) in enumerate(counts.items()):
    tops = np.repeat(np.divide(heights[first:], np.max(heights)), 2)
    lines.append(Line(name, index, x, np.array([0, *tops, 0])))
  return curves(label, x_label, lines)


def scatter_chart(
  label: str, points: np.ndarray, groups: Mapping[str, np.ndarray]
) -> Element:
  """A chart of points in the plane, coloured by group.

  Args:
    points: [points, 2].
    groups: the rows of the points of each group, by name. The largest group is
      drawn first.
  """
  axes = _Axes(points[:, 0], points[:, 1])
  paths = []
  for index, (name, rows) in enumerate(groups.items()):
    x, y = axes.at(*points[rows].T)
    dots = ''.join(
      f'M{left:.1f} {top:.1f}h0' for left, top in zip(x, y, strict=True)
    )
    paths.append((len(rows), _path(dots, name, f'cloud {color(index)}')))
  paths.sort(key=lambda path: -path[0])
  return _chart(label, *(path for _, path in paths))


class _Axes:
  """The scales of a chart, from the ranges of its data."""

  def __init__(self, x: np.ndarray, y: np.ndarray):
    self._x, self._y = _range(x), _range(y)

  def at(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions in the picture of points of the data."""
    across, up = _share(x, self._x), _share(y, self._y)
    left = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
    return left, _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

  def frame(self, x_label: str) -> list[Element]:
    """The lines of the grid, with their numbers."""
    middle, right = (_LEFT + _WIDTH - _RIGHT) / 2, _WIDTH - _RIGHT
    parts = [_text(x_label, middle, _HEIGHT - 4, 'middle')]
    for value in ticks(*self._y, most=8):
      _, y = self.at(self._x[0], value)
      parts.append(_path(f'M{_LEFT} {y:.1f}H{right}', '', 'grid'))
      parts.append(_text(f'{value:.6g}', _LEFT - 6, y + 4, 'end'))
    for value in ticks(*self._x, most=6):
      x, _ = self.at(value, self._y[0])
      parts.append(_text(f'{value:,.6g}', x, _HEIGHT - _BOTTOM + 15, 'middle'))
    return parts


def ticks(low: float, high: float, *, most: int) -> list[float]:
  """Round numbers in a range, at most `most + 1` of them.

  Example:
    >>> ticks(0.61, 0.72, most=6), ticks(-3, 832, most=5)
    ([0.62, 0.64, 0.66, 0.68, 0.7, 0.72], [0.0, 200.0, 400.0, 600.0, 800.0])
  """
  least = (high - low) / most
  unit = 10.0 ** math.floor(math.log10(least))
  step = next(n * unit for n in (1, 2, 5, 10) if n * unit >= least)
  numbers = range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)
  # 12 digits, since 3 * 0.1, for example, is 0.30000000000000004.
  return [float(f'{number * step:.12g}') for number in numbers]


def _range(values: np.ndarray) -> tuple[float, float]:
  low, high = float(np.min(values)), float(np.max(values))
  # A flat curve is drawn in the middle.
  margin = (high - low) * 0.02 or abs(high) * 0.1 or 1.0
  return low - margin, high + margin


def _share(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
  return (np.asarray(values) - ends[0]) / (ends[1] - ends[0])


def evenly_spaced(count: int, most: int) -> np.ndarray:
  """At most `most` indices below `count`, from the first to the last one.

  Example:
    >>> evenly_spaced(9, 3).tolist(), evenly_spaced(2, 3).tolist()
    ([0, 4, 8], [0, 1])
  """
  return np.linspace(0, count - 1, min(count, most)).astype(int)


def _path(path: str, title: str, style: str) -> Element:
  content = [tag('title', title)] if title else []
  return tag('path', *content, d=path, class_=style)


def _text(text: str, x: float, y: float, anchor: str) -> Element:
  return tag('text', text, x=f'{x:.1f}', y=f'{y:.1f}', text_anchor=anchor)


def _chart(label: str, *parts: Element) -> Element:
  box = f'0 0 {_WIDTH} {_HEIGHT}'
  return tag('svg', *parts, viewBox=box, role='img', aria_label=label)
