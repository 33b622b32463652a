"""Writes the tables of accuracies into the docs, from these numbers.

  python docs/results/tables.py            # rewrites docs/results.md, README.md
  python docs/results/tables.py --check    # fails if a table is out of date
  python docs/results/tables.py --collect=runs/ml1m/rivals --name=ml1m_rivals

The last command collects the numbers of the cells of a comparison in
`NAME.json`, only those of some `--methods` and `--splits` if they are given. A
table stands between `<!-- table NAME SHARE,... TASK,... MODE,... -->`, where a
share is that of the training labels, and `<!-- end -->`. The titles and the
order of its rows are in `titles.json`.
"""

import argparse
import collections
import json
import pathlib
import re
import statistics
from collections.abc import Mapping

HERE = pathlib.Path(__file__).parent
PAGES = (HERE.parent / 'results.md', HERE.parent.parent / 'README.md')
# The titles of methods in all tables, and those of some in one table.
TITLES = json.loads((HERE / 'titles.json').read_text())
MODES = {
  'frozen': '{}',
  'frozen_with_bag': '+ bag',
  'fine_tuned': 'fine-tuned',
}
_TABLE = re.compile(
  r'(<!-- table (\S+) (\S+) (\S+) (\S+) -->\n).*?(<!-- end -->)', re.S
)


def mean_and_error(of_splits: Mapping[int, list[float]]) -> str:
  """Formats the mean over splits and its standard error, in percent.

  A split has a value for each seed of pre-training, which are averaged first.
  """
  values = [statistics.fmean(values) for values in of_splits.values()]
  mean, error = statistics.fmean(values), statistics.stdev(values)
  digits = 1 if mean >= 0.1 else 2
  error /= len(values) ** 0.5
  return f'{100 * mean:.{digits}f} ± {100 * error:.{digits}f}'


def table(
  names: list[str], shares: list[str], tasks: list[str], modes: list[str]
) -> str:
  """A table in Markdown with one row per method; - where there is no number."""
  found = collections.defaultdict(lambda: collections.defaultdict(list))
  (name,) = names
  for cell in json.loads((HERE / f'{name}.json').read_text()):
    key = cell['method'], cell['mode'], cell['task'], cell['share']
    found[key][cell['split']].append(cell['test'])
  columns = [
    (mode, task, float(share))
    for share in shares
    for task in tasks
    for mode in modes
  ]
  titles = [
    MODES[mode].format(task)
    + (f', {share:.0%} of labels' if len(shares) > 1 and share < 1 else '')
    for mode, task, share in columns
  ]
  lines = [
    f'| vectors | {" | ".join(titles)} |',
    '| --- |' + ' --- |' * len(titles),
  ]
  for method, title in (TITLES['all'] | TITLES.get(name, {})).items():
    values = [found.get((method, *column)) for column in columns]
    if any(values):
      cells = [mean_and_error(v) if v else '-' for v in values]
      lines.append(f'| {title} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def with_tables(text: str) -> str:
  """The page with its tables written again from the numbers."""
  return _TABLE.sub(
    lambda found: (
      found[1]
      + table(*(found[number].split(',') for number in (2, 3, 4, 5)))
      + found[6]
    ),
    text,
  )


def collect(
  workdir: pathlib.Path, name: str, methods: str | None, splits: int
) -> None:
  """Writes the accuracy, AUC or NDCG@10 of each cell of a comparison."""
  cells = []
  for path in (workdir / 'cells').glob('**/result.json'):
    words = list(path.parent.relative_to(workdir / 'cells').parts)
    if words[2].startswith('share'):
      # Without a mode in the path, cells with a seed are fine-tuned, and those
      # without one are baselines, whose vectors are frozen.
      has_seed = words[-1].startswith('seed_')
      words.insert(2, 'fine_tuned' if has_seed else 'frozen')
    # A baseline has no seed.
    method, task, mode, share, split, *seed = words
    result = json.loads(path.read_text())
    metrics = ('accuracy', 'auc', 'ndcg@10')
    metric = next(name for name in metrics if name in result['test'])
    cells.append(
      {
        'method': method,
        'mode': mode,
        'task': task,
        'share': float(share.removeprefix('share_')),
        'split': int(split.removeprefix('split_')),
        'seed': int(seed[0].removeprefix('seed_')) if seed else 0,
        'validation': round(result['validation'][metric], 6),
        'test': round(result['test'][metric], 6),
      }
    )
  cells = [
    cell
    for cell in cells
    if cell['split'] < splits
    and (methods is None or cell['method'] in methods.split(','))
  ]
  cells.sort(key=lambda cell: tuple(cell.values()))
  lines = ',\n '.join(map(json.dumps, cells))
  (HERE / f'{name}.json').write_text(f'[\n {lines}\n]\n')


def main() -> None:
  """Rewrites the pages, or checks them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--check', action='store_true')
  parser.add_argument('--collect', type=pathlib.Path)
  parser.add_argument('--name')
  parser.add_argument('--methods')
  parser.add_argument('--splits', type=int, default=1000)
  args = parser.parse_args()
  check = args.check
  if args.collect:
    collect(args.collect, args.name, args.methods, args.splits)
  for page in PAGES:
    text = page.read_text()
    wanted = with_tables(text)
    if check and text != wanted:
      raise SystemExit(
        f'{page.name}: a table differs from its numbers: run '
        'python docs/results/tables.py'
      )
    page.write_text(wanted)


if __name__ == '__main__':
  main()
