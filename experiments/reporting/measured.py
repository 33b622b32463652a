"""Comparisons, similarities, and the quality of vectors over training time."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, fromstring

from markdown_it import MarkdownIt

from experiments.flags.binder import SettingsError
from experiments.reporting.charts import histogram_chart
from experiments.reporting.elements import (
  allowed,
  figure,
  legend,
  scrolled,
  table,
  tag,
)
from experiments.reporting.runs import Run
from experiments.run.outputs import new_file
from experiments.run.pictures import Lines, draw_lines
from experiments.run.workdir import reading_json

COMPARISON, SIMILARITIES = 'results.md', 'similarity.json'
_QUANTILES = ('5', '50', '95')
_PROBE = 'validation_probe_'


def comparison_section(name: str, folder: pathlib.Path) -> Element:
  """The tables of a comparison, from its `results.md`."""
  # HTML, images and links are off: the page must not load anything.
  reader = MarkdownIt('commonmark', {'html': False}).enable('table')
  reader.disable(['image', 'link', 'autolink'])
  text = reader.render((folder / COMPARISON).read_text('utf-8', 'replace'))
  section = fromstring(f'<section>{allowed(text)}</section>')
  for index, part in enumerate(section):
    if part.tag == 'table':
      for row in part.iterfind('tbody/tr'):
        row[0].tag = 'th'
        row[0].set('scope', 'row')
      section[index] = scrolled(part, f'Comparison {name}')
    elif part.tag in ('h1', 'h2', 'h3'):
      part.tag = f'h{int(part.tag[1]) + 2}'
  section.insert(0, tag('h2', f'Comparison: {name}'))
  return section


def similarity_section(name: str, folder: pathlib.Path) -> Element:
  """The similarities that `experiments.similarity` measured."""
  path = folder / SIMILARITIES
  with reading_json(path, writer='experiments.similarity') as result:
    methods = result['methods']
    kinds = next(iter(methods.values()))
    return tag(
      'section',
      tag('h2', f'Similarities: {name}'),
      tag(
        'p',
        f'{result["users"]:,} users of {result["dataset"]}: cosines of the '
        'vector of a user with that of a second dropout pass, of augmented '
        'behaviours, and of another user. Each histogram is scaled to the '
        'height of the chart.',
        class_='note',
      ),
      legend(kinds),
      tag(
        'div',
        *(_chart(of, result['edges'], found) for of, found in methods.items()),
        class_='charts',
      ),
      _table(methods),
    )


def _chart(
  name: str, edges: Sequence[float], kinds: Mapping[str, Any]
) -> Element:
  counts = {kind: found['histogram'] for kind, found in kinds.items()}
  label = f'Histograms of similarities of {name}'
  return figure(histogram_chart(label, 'cosine', edges, counts), name)


def _table(methods: Mapping[str, Mapping[str, Any]]) -> Element:
  head = ['encoder', 'cosine with', 'mean', 'std']
  head += [f'{share} %' for share in _QUANTILES]
  rows = []
  for name, kinds in methods.items():
    for kind, found in kinds.items():
      numbers = [found['mean'], found['std']]
      numbers += [found['quantiles'][share] for share in _QUANTILES]
      rows.append([name, kind, *(f'{number:.3f}' for number in numbers)])
  return table('Mean, standard deviation and quantiles', head, rows)


def draw_minutes(runs: Sequence[Run], path: pathlib.Path) -> list[str]:
  """Draws the probed score of user vectors over seconds of pre-training.

  All scores are those of validation rows.

  Args:
    runs: runs of pre-training are drawn as curves; runs with a result of the
      same task, such as baselines, are drawn as horizontal lines.

  Returns:
    A line of text for each curve: its best score, and the seconds after which
    it first reached the score of each horizontal line.

  Raises:
    SettingsError: If no run has logged both probes and seconds.
  """
  panels = _panels(runs)
  if not panels:
    raise SettingsError(
      '--picture: no run has logged probes of its vectors and seconds: '
      'pre-train with --select_by=probe --log_seconds'
    )
  drawing = draw_lines(panels, label='seconds of training')
  # Matplotlib raises a ValueError for a format that it does not know.
  errors = (OSError, ValueError)
  with new_file(path, flag='picture', errors=errors) as aside:
    drawing.savefig(aside, format=path.suffix[1:] or None)
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
  """A panel for each probed task of each data set."""
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
  """The validation scores of runs with a result of the task, by name."""
  found = {
    run.name: run.result.get('validation', {})
    for run in runs
    if run.result.get('task') == task
  }
  # A probe of conversion has no accuracy, and is judged by its AUC.
  scores = {
    n: score.get('accuracy', score.get('auc')) for n, score in found.items()
  }
  return {name: score for name, score in scores.items() if score is not None}


def _first(points: Sequence[tuple[float, float]], level: float) -> str:
  reached = [seconds for seconds, score in points if score >= level]
  return f'reached after {reached[0]:.0f} s' if reached else 'not reached'
