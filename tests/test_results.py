"""The tables of the docs equal the committed numbers."""

import collections
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments.comparison import significance
from tests.tiny_runs import ROOT

LAST, BAG = 'joint+num_epochs=24', 'bag_of_items_whole'
LATER, LONGER = 'last_stage', 'pooled_items_longer'
CROPPED = 'adaptssr_crop_reorder'
BOTH = 'joint+learning_rate=0.002+num_epochs=12+num_layers=1'
SLOW = 'pooled_items+learning_rate=0.002+num_epochs=24+num_layers=1'
FAST = 'pooled_items+learning_rate=0.004+num_epochs=24+num_layers=1'
BOTH_FAST = BOTH.replace('0.002', '0.004')
EVEN = f'{BOTH_FAST}+objective_weights=1-1'
WHOLE, FAST_WHOLE = f'{EVEN}_whole', f'{FAST}_whole'
FOUR = f'{WHOLE}_x4'


def checked(root):
  return subprocess.run(
    [sys.executable, 'docs/results/tables.py', '--check'],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_tables_equal_the_numbers():
  done = checked(ROOT)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', ['README.md', 'docs/results.md'])
def test_a_number_changed_by_hand_is_found(tmp_path, name):
  shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
  shutil.copy(ROOT / 'README.md', tmp_path)
  page = tmp_path / name
  start = page.read_text().index('<!-- table')
  text = page.read_text()
  page.write_text(text[:start] + text[start:].replace(' ± 0.4', ' ± 0.3', 1))
  done = checked(tmp_path)
  assert done.returncode != 0
  assert f'{page.name}: a table differs from its numbers' in done.stderr


def accuracies(name, row, task, share):
  """The test accuracy of a row in each split, in percent; a mean over seeds."""
  method = row.removesuffix(' + bag')
  mode = 'frozen' if method == row else 'frozen_with_bag'
  cells = json.loads((ROOT / f'docs/results/{name}.json').read_text())
  wanted = {'method': method, 'mode': mode, 'task': task, 'share': share}
  found = collections.defaultdict(list)
  for cell in cells:
    if wanted.items() <= cell.items():
      found[cell['split']].append(100 * cell['test'])
  return np.array([np.mean(found[split]) for split in sorted(found)])


@pytest.mark.parametrize(
  ('name', 'row', 'reference', 'task', 'share', 'difference', 'p'),
  [
    ('ml1m_frozen', LAST, BAG, 'age', 0.05, '+2.3', '0.02'),
    ('ml1m_frozen', LAST, BAG, 'gender', 1.0, '-0.6', '0.33'),
    ('ml1m_frozen', f'{LAST} + bag', BAG, 'age', 1.0, '+2.1', '0.01'),
    ('ml1m_frozen', 'joint', 'pooled_items', 'gender', 1.0, '+1.0', '0.03'),
    ('ml1m_two_layers', 'joint', 'pooled_items', 'age', 0.2, '+1.7', '0.01'),
    ('ml1m_two_layers', LATER, LONGER, 'gender', 0.0834, '-0.2', '0.27'),
    ('ml1m_rivals', 'joint', 'pooled_items', 'age', 0.05, '+1.8', '0.07'),
    ('ml1m_rivals', 'joint', 'pooled_items_48', 'age', 1.0, '+1.7', '0.03'),
    ('ml1m_sweeps', CROPPED, 'masked_items', 'age', 1.0, '+1.4', '0.04'),
    ('ml1m_seeds', BOTH, SLOW, 'age', 0.2, '+1.5', '0.01'),
    ('ml1m_seeds', BOTH, SLOW, 'gender', 1.0, '+0.5', '0.06'),
    ('ml1m_seeds', BOTH_FAST, FAST, 'age', 0.2, '+0.9', '0.04'),
    ('ml1m_seeds', BOTH_FAST, FAST, 'gender', 1.0, '+0.6', '0.08'),
    ('ml1m_whole', WHOLE, EVEN, 'age', 0.2, '+1.4', '0.00'),
    ('ml1m_whole', WHOLE, FAST_WHOLE, 'age', 1.0, '+1.6', '0.00'),
    ('ml1m_whole', WHOLE, FAST_WHOLE, 'gender', 1.0, '+0.8', '0.00'),
    ('ml1m_whole', FOUR, BAG, 'age', 0.2, '+3.0', '0.00'),
    ('ml1m_whole', FOUR, BAG, 'gender', 0.05, '+1.4', '0.09'),
    ('ml1m_whole', FOUR, WHOLE, 'age', 1.0, '+1.2', '0.05'),
    ('ml1m_whole', WHOLE, BAG, 'age', 0.2, '+1.8', '0.02'),
    ('ml1m_whole', WHOLE, BAG, 'age', 0.05, '+2.1', '0.01'),
    ('ml1m_whole', WHOLE, BAG, 'gender', 1.0, '-0.9', '0.14'),
    ('ta_feng', 'bag_svd', 'pooled_items', 'age', 1.0, '-0.7', '0.12'),
    ('complete_journey', 'joint + bag', BAG, 'coupon', 1.0, '+1.4', '0.07'),
  ],
)
def test_the_text_says_what_the_numbers_do(
  name, row, reference, task, share, difference, p
):
  found = accuracies(name, row, task, share)
  differences = found - accuracies(name, reference, task, share)
  assert len(differences) == 10
  assert f'{differences.mean():+.1f}' == difference
  value = significance.split_test(differences, test_per_train=1 / 3)
  assert f'{value:.2f}' == p


def test_fine_tuned_cells_of_any_seed_are_collected_as_such(tmp_path):
  docs = tmp_path / 'docs'
  shutil.copytree(ROOT / 'docs', docs)
  shutil.copy(ROOT / 'README.md', tmp_path)
  names = ('bag_svd/age/share_1/split_0', 'joint/age/share_1/split_0/seed_1')
  for name in names:
    path = tmp_path / 'run' / 'cells' / name / 'result.json'
    path.parent.mkdir(parents=True)
    scores = {'accuracy': 0.5}
    path.write_text(json.dumps({'validation': scores, 'test': scores}))
  subprocess.run(
    [sys.executable, 'docs/results/tables.py', '--collect=run', '--name=own'],
    cwd=tmp_path,
    check=True,
  )
  cells = json.loads((docs / 'results' / 'own.json').read_text())
  assert [cell['mode'] for cell in cells] == ['frozen', 'fine_tuned']
