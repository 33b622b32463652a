"""The picture of similarities: a panel per method, a curve per kind."""

import pathlib
from typing import Any

import numpy as np

from experiments.run.pictures import new_figure

_LABELS = {
  'dropout': 'second dropout pass',
  'crop': 'crop',
  'mask': 'mask',
  'reorder': 'reorder',
  'other': 'other users',
}
_PANELS_A_ROW = 3


def draw_similarities(path: pathlib.Path, result: dict[str, Any]) -> None:
  """Draws the histograms of `similarity.json`.

  Args:
    path: of the PNG file.
    result: what `similarity.json` says.

  Raises:
    SettingsError: Matplotlib is not installed; names the extra.
  """
  methods, edges = result['methods'], np.array(result['edges'])
  columns = min(len(methods), _PANELS_A_ROW)
  rows = -(-len(methods) // columns)
  figure = new_figure(1 + 3.4 * columns, 0.6 + 2.6 * rows)
  low = _lowest_edge(methods, edges)
  for place, (name, kinds) in enumerate(methods.items(), 1):
    axis = figure.add_subplot(rows, columns, place)
    for color, (kind, summary) in enumerate(kinds.items()):
      counts = np.array(summary['histogram'])
      # Each to its own height: a sharp peak would flatten all others.
      heights = counts / counts.max()
      axis.stairs(heights, edges, fill=True, alpha=0.1, color=f'C{color}')
      axis.stairs(heights, edges, color=f'C{color}', label=_LABELS[kind])
    axis.set_title(name, fontsize='medium')
    axis.set_xlim(low, 1)
    axis.set_xlabel('cosine similarity')
    axis.set_ylabel('density, peak = 1')
  figure.legend(
    *axis.get_legend_handles_labels(),
    loc='outside lower center',
    ncols=3 * columns,
    fontsize=8,
  )
  figure.savefig(path, dpi=150)


def _lowest_edge(methods: dict[str, Any], edges: np.ndarray) -> float:
  """Where the leftmost value of all panels lies: the rest is empty."""
  firsts = [
    np.flatnonzero(summary['histogram'])[0]
    for kinds in methods.values()
    for summary in kinds.values()
  ]
  return float(edges[min(firsts)])
