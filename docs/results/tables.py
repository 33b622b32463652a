"""Writes the tables of accuracies into the docs, from the numbers beside it.

  python docs/results/tables.py            # rewrites docs/results.md, README.md
  python docs/results/tables.py --check    # fails if they say something else

A table stands between `<!-- table SHARE,... TASK,... MODE,... -->`, with shares
of the training labels, and `<!-- end -->`.
"""

import argparse
import collections
import json
import pathlib
import re
import statistics

HERE = pathlib.Path(__file__).parent
NUMBERS = HERE / 'ml1m_frozen.json'
PAGES = (HERE.parent / 'results.md', HERE.parent.parent / 'README.md')
TITLES = {
  'random_encoder': 'Random encoder',
  'bag_of_items': 'Bag of items, last 300',
  'bag_of_items_whole': 'Bag of items, whole history',
  'bag_svd': 'SVD of the bag, last 300, 64 features',
  'masked_items': 'Masked items',
  'adaptssr': 'Masked items, then AdaptSSR as in the paper',
  'pooled_items': 'Pooled items',
  'pooled_items_longer': 'Pooled items, continued',
  'adaptssr_after_pooled': 'Pooled items, then AdaptSSR as in the paper',
  'last_stage': 'Pooled items, then AdaptSSR beside them',
  'joint': 'Pooled items and AdaptSSR from the start',
}
MODES = {'frozen': '{}', 'frozen_with_bag': '+ bag'}
_TABLE = re.compile(
  r'(<!-- table (\S+) (\S+) (\S+) -->\n).*?(<!-- end -->)', re.S
)


def mean_and_error(values: list[float]) -> str:
  """The mean of the splits and its standard error, in percent."""
  error = statistics.stdev(values) / len(values) ** 0.5
  return f'{100 * statistics.fmean(values):.1f} ± {100 * error:.1f}'


def table(shares: list[str], tasks: list[str], modes: list[str]) -> str:
  """A table of Markdown, a row a method; - where there is no number."""
  found = collections.defaultdict(list)
  for cell in json.loads(NUMBERS.read_text()):
    key = cell['method'], cell['mode'], cell['task'], cell['share']
    found[key].append(cell['test'])
  columns = [
    (mode, task, float(share))
    for share in shares
    for task in tasks
    for mode in modes
  ]
  names = [
    MODES[mode].format(task)
    + (f', {share:.0%} of labels' if len(shares) > 1 and share < 1 else '')
    for mode, task, share in columns
  ]
  lines = [
    f'| vectors | {" | ".join(names)} |',
    '| --- |' + ' --- |' * len(names),
  ]
  for method, title in TITLES.items():
    values = [found.get((method, *column)) for column in columns]
    if any(values):
      cells = [mean_and_error(v) if v else '-' for v in values]
      lines.append(f'| {title} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def with_tables(text: str) -> str:
  """A page with its tables made anew."""
  return _TABLE.sub(
    lambda found: (
      found[1]
      + table(*(found[number].split(',') for number in (2, 3, 4)))
      + found[5]
    ),
    text,
  )


def main() -> None:
  """Rewrites the pages, or checks them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--check', action='store_true')
  check = parser.parse_args().check
  for page in PAGES:
    text = page.read_text()
    wanted = with_tables(text)
    if check and text != wanted:
      raise SystemExit(
        f'{page.name}: a table is not that of {NUMBERS.name}: run '
        'python docs/results/tables.py'
      )
    page.write_text(wanted)


if __name__ == '__main__':
  main()
