"""Comparisons, similarities, and the quality of vectors over training time."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt

from experiments.flags.binder import SettingsError
from experiments.reporting.charts import as_svg
from experiments.reporting.page import Chart, Section, Table
from experiments.reporting.runs import Run
from experiments.run.outputs import new_file
from experiments.run.pictures import Lines, draw_lines, draw_similarities
from experiments.run.workdir import SIMILARITIES, reading_json

COMPARISON = 'results.md'
_QUANTILES = ('5', '50', '95')
_PROBE = 'validation_probe_'


def comparison_section(name: str, folder: pathlib.Path) -> Section:
  """The tables of a comparison, from its `results.md`."""
  # HTML, images and links are off: the page must not load anything.
  reader = MarkdownIt('commonmark', {'html': False}).enable('table')
  reader.disable(['image', 'link', 'autolink'])
  tokens = reader.parse((folder / COMPARISON).read_text('utf-8', 'replace'))
  for at, token in enumerate(tokens):
    if token.type in ('heading_open', 'heading_close'):
      token.tag = f'h{min(6, int(token.tag[1]) + 2)}'
    elif token.type == 'tr_open' and tokens[at + 1].type == 'td_open':
      # The first cell of a row, between its two tags, is a header.
      tokens[at + 1].tag = tokens[at + 3].tag = 'th'
      tokens[at + 1].attrSet('scope', 'row')
  html = reader.renderer.render(tokens, reader.options, {})
  return Section(f'Comparison: {name}', html=html)


def similarity_section(name: str, folder: pathlib.Path) -> Section:
  """The similarities that `experiments.similarity` measured."""
  path = folder / SIMILARITIES
  with reading_json(path, writer='experiments.similarity') as result:
    methods = result['methods']
    return Section(
      f'Similarities: {name}',
      note=f'{result["users"]:,} users of {result["dataset"]}: cosines of the '
      'vector of a user with that of a second dropout pass, of augmented '
      'behaviours, and of another user. Each histogram is scaled to the '
      'height of the chart.',
      charts=[
        Chart(
          # Without a title, since the caption has the name.
          as_svg(draw_similarities({'': found}, result['edges'])),
          f'Histograms of similarities of {method}',
          method,
        )
        for method, found in methods.items()
      ],
      tables=[_table(methods)],
    )


def _table(methods: Mapping[str, Mapping[str, Any]]) -> Table:
  head = ['encoder', 'cosine with', 'mean', 'std']
  head += [f'{share} %' for share in _QUANTILES]
  rows = []
  for name, kinds in methods.items():
    for kind, found in kinds.items():
      numbers = [found['mean'], found['std']]
      numbers += [found['quantiles'][share] for share in _QUANTILES]
      rows.append([name, kind, *(f'{number:.3f}' for number in numbers)])
  return Table('Mean, standard deviation and quantiles', head, rows)


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
