"""What other commands measured: comparisons, and similarities."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, fromstring

from markdown_it import MarkdownIt

from experiments.reporting.charts import stairs
from experiments.reporting.elements import (
  allowed,
  figure,
  legend,
  scrolled,
  table,
  tag,
)
from experiments.run.workdir import reading_json

COMPARISON, SIMILARITIES = 'results.md', 'similarity.json'
_QUANTILES = ('5', '50', '95')


def comparison_section(name: str, folder: pathlib.Path) -> Element:
  """The tables of a comparison, as its `results.md` has them."""
  # Nothing that loads something, or leads elsewhere.
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
        'behaviours, and of another user. Each histogram is as high as the '
        'chart.',
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
  return figure(stairs(label, 'cosine', edges, counts), name)


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
