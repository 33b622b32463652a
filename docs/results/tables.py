"""Writes the tables of accuracies into the docs, from these numbers.

  python docs/results/tables.py            # rewrites docs/results.md, README.md
  python docs/results/tables.py --check    # fails if a table is out of date
  python docs/results/tables.py --collect=runs/ml1m/rivals --name=ml1m_rivals

The last command collects the numbers of the cells of a comparison in
`NAME.json`, only those of some `--methods` and `--splits` if they are given. A
table stands between `<!-- table NAME SHARE,... TASK,... MODE,... -->`, where a
share is that of the training labels, and `<!-- end -->`.
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
TITLES = {
  'most_popular': 'Most popular',
  'last_item': 'Last item, a Markov chain',
  'none': 'No pre-training: trained end to end',
  'random_encoder': 'Random encoder',
  'bag_of_items': 'Bag of items, only what the encoder reads',
  'bag_of_items_whole': 'Bag of items, whole history',
  'bag_svd': 'SVD of the bag, only what the encoder reads',
  'masked_items': 'Masked items',
  'masked_items,two_layers': 'Masked items, 2 layers',
  'pooled_items+objective=masked_items': 'Masked items',
  'adaptssr': 'Masked items, then AdaptSSR as in the paper',
  'pooled_items': 'Pooled items',
  'pooled_items_longer': 'Pooled items, continued',
  'adaptssr_after_pooled': 'Pooled items, then AdaptSSR as in the paper',
  'last_stage': 'Pooled items, continued with AdaptSSR',
  'joint': 'Pooled items and AdaptSSR from the start',
  'pooled_items_48': 'Pooled items, 48 epochs',
  'pooled_items+num_epochs=24': 'Pooled items, 24 epochs',
  'joint+num_epochs=24': 'Pooled items and AdaptSSR from the start, 24 epochs',
  'pooled_items+learning_rate=0.004+num_layers=1': 'Pooled items, one layer',
  'joint+learning_rate=0.004+num_layers=1': (
    'Pooled items and AdaptSSR from the start, one layer'
  ),
  'sasrec': 'SASRec (causal items, full softmax)',
  # See `ml1m_combined`.
  'pooled_items+learning_rate=0.004+num_epochs=24+num_layers=1'
  '+objective=pooled_items-causal_items+readout=pooled-last': (
    'Pooled and causal items'
  ),
  'joint+learning_rate=0.004+num_epochs=24+num_layers=1'
  '+objective=pooled_items-adaptssr-causal_items+objective_weights=1-0.3-1'
  '+readout=pooled-last': 'Pooled and causal items and AdaptSSR',
  'joint_and_sasrec': (
    'Pooled items and AdaptSSR from the start, concatenated with SASRec'
  ),
  'masked_items_of_interests': 'Masked items, 4 interests',
}
RIVALS = {
  'ptum': 'PTUM',
  'clue': 'CLUE',
  'ccl': 'CCL',
  'idicl': 'IDICL (4 interests)',
  'cl4srec': 'CL4SRec',
  'coserec': 'CoSeRec',
  'duorec': 'DuoRec',
  'coles': 'CoLES',
  'ecl': 'ECL',
  'msdp': 'MSDP',
  'next_items': 'next items',
}
TITLES |= {
  name: f'Masked items, then {title}' for name, title in RIVALS.items()
}
TITLES |= {
  f'pooled_items,{flags}': f'd {width}, layers: {layers}, behaviours: {length}'
  for flags, width, layers, length in (
    ('embed_dim=64,num_steps=598', 64, 2, 100),
    ('num_layers=1,num_steps=1649', 64, 1, 100),
    ('num_layers=4,num_steps=287', 64, 4, 100),
    ('embed_dim=128,num_steps=270', 128, 2, 100),
    ('embed_dim=256,num_steps=76', 256, 2, 100),
    ('max_length=200,slice_lengths=15,200,num_steps=420', 64, 2, 200),
    ('max_length=300,slice_lengths=15,300,num_steps=227', 64, 2, 300),
    ('max_length=500,slice_lengths=15,500,num_steps=151', 64, 2, 500),
    (
      'embed_dim=128,max_length=300,slice_lengths=15,300,num_steps=114',
      *(128, 2, 300),
    ),
  )
}
# See `ml1m_seeds`.
TITLES |= {
  f'pooled_items+learning_rate=0.00{rate}+num_epochs={epochs}+num_layers=1': (
    f'Pooled items, {epochs} epochs, rate .00{rate}'
  )
  for epochs, rate in ((12, 2), (24, 2), (24, 4))
}
# See `ml1m_sweeps` and `ml1m_temperatures`.
TITLES |= {f'adaptssr_rho_0.{n}': f'AdaptSSR, rho .{n}' for n in range(1, 10)}
TITLES |= {
  f'adaptssr_{name}': f'AdaptSSR, {name.replace("_", " and ")}'
  for name in (
    *('crop', 'mask', 'reorder'),
    *('crop_mask', 'crop_reorder', 'mask_reorder'),
  )
}
TITLES |= {
  f'{method}+temperature={value}': f'{TITLES[method]}, temperature {value}'
  for method in ('ccl', 'cl4srec', 'coserec', 'duorec', 'adaptssr', 'clue')
  for value in (0.1, 0.5, 1.0)
}
# See `ml1m_weights`.
TITLES |= {
  f'{method}+objective=masked_items-{method}+objective_weights=1-{weight}': (
    f'Masked items, continued with {title} of weight {weight}'
  )
  for method, title, weight in (
    *((method, title, '0.1') for method, title in RIVALS.items()),
    ('adaptssr', 'AdaptSSR', '0.1'),
    ('adaptssr', 'AdaptSSR', '1'),
  )
}
# Both objectives together, one layer, 12 epochs: see `ml1m_tuning`.
TITLES |= {
  f'joint{flags}': title
  for flags, title in (
    ('+num_epochs=12+num_layers=1', 'rate .001'),
    ('+learning_rate=0.002+num_epochs=12+num_layers=1', 'rate .002'),
    ('+learning_rate=0.004+num_epochs=12+num_layers=1', 'rate .004'),
    (
      '+learning_rate=0.004+num_epochs=12+num_layers=1+schedule=linear',
      'rate .004, falling to 0',
    ),
    (
      '+learning_rate=0.002+num_epochs=12+num_layers=1+num_queries=4',
      'rate .002, 4 queries',
    ),
    ('+batch_size=64+num_epochs=12+num_layers=1', 'rate .001, 64 users a step'),
    (
      '+num_epochs=12+num_layers=1+objective_weights=1-1',
      'rate .001, weights 1 and 1',
    ),
    (
      '+num_epochs=12+num_layers=1+temperature=0.2',
      'rate .001, temperature .2',
    ),
  )
}
# Titles of rows that are named otherwise in the other tables.
TITLES_OF = {
  'ml1m_seeds': {
    f'joint+learning_rate=0.00{rate}+num_epochs=12+num_layers=1{flags}': (
      f'Pooled items and AdaptSSR from the start, 12 epochs, rate .00{title}'
    )
    for rate, flags, title in (
      (2, '', '2'),
      (4, '', '4'),
      (4, '+objective_weights=1-1', '4, weights 1 and 1'),
      (4, '+objective_weights=1-3', '4, weights 1 and 3'),
    )
  }
}
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
  for method, title in (TITLES | TITLES_OF.get(name, {})).items():
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
