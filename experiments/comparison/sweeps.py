"""The numbers of a comparison's sweeps: one row for each point of a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.comparison import methods
from experiments.comparison.table import Summary


def sweep_points(
  summary: Summary, rhos: Sequence[str], *, pairs: bool
) -> dict[str, list[dict[str, Any]]]:
  """The numbers behind the curves and the heat maps.

  Args:
    summary: of all columns.
    rhos: the values of `--rhos`.
    pairs: whether pairs of augmentations were compared.

  Returns:
    `rho` and `augmentation_pairs`, as far as there are any.
  """
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
  """The numbers of a method in every column."""
  points = []
  for column, found in summary.items():
    low, high = found[name]['interval']
    mean, std = found[name]['mean'], found[name]['std']
    points.append(
      {**column._asdict(), 'mean': mean, 'std': std, 'low': low, 'high': high}
    )
  return points


def as_csv(points: Sequence[Mapping[str, Any]]) -> str:
  r"""The points as a table with a header.

  Example:
    >>> as_csv([{'rho': 0.1, 'mean': 0.5}, {'rho': 0.2, 'mean': 0.75}])
    'rho,mean\n0.1,0.5\n0.2,0.75\n'
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, list(points[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(points)
  return text.getvalue()
