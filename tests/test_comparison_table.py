"""The tables of a comparison, their statistics, and the pictures."""

import numpy as np
import pytest

from experiments.comparison import summary
from experiments.comparison.pictures import (
  as_csv,
  draw_all,
  requested_sweeps,
  sweep_points,
)
from experiments.comparison.summary import Outcome, summarise, summarise_splits
from experiments.comparison.table import Column, markdown

AGE = Column('age', 1.0, 'accuracy')
CLICK = Column('click', 1.0, 'ndcg@10')
FEW = Column('age', 0.05, 'accuracy')


def values_of(mean, std=None, p=None, improvement=None):
  difference = None if p is None else mean - 0.4
  return {
    'mean': mean,
    'std': std,
    'error': None if std is None else std / 2,
    'runs': 4,
    'interval': [mean - 0.01, mean + 0.02],
    'improvement': improvement,
    'difference': difference,
    'difference_interval': None if p is None else [difference - 0.005, 0.3],
    'p': p,
    'p_holm': None if p is None else min(1, 2 * p),
    'test': None if p is None else 'bootstrap',
  }


SUMMARY = {
  AGE: {
    'none': values_of(0.4, 0.024),
    'bag': values_of(0.5, p=0.02499, improvement=25.0),
    'ssr': values_of(0.45678, 0.002, p=0.025, improvement=14.196),
  },
  CLICK: {
    'none': values_of(0.02, 0.0),
    'ssr': values_of(0.01, 0.0, p=0.0001, improvement=-50.0),
  },
  FEW: {'none': values_of(0.3)},
}
TITLES = {'none': 'None', 'bag': 'Bag of items', 'ssr': 'AdaptSSR'}


def test_the_table_to_the_letter():
  assert (
    markdown(SUMMARY, TITLES)
    == """\
## All training labels

| Pre-train | age accuracy | Impr | click ndcg@10 | Impr |
|---|--:|--:|--:|--:|
| None | 40.00 ± 1.20 | - | **2.00 ± 0.00** | - |
| Bag of items | **50.00** † | 25.00 | - | - |
| AdaptSSR | 45.68 ± 0.10 | 14.20 | 1.00 ± 0.00 † | -50.00 |

95 % intervals of the metric, and of its difference to None, in points:

| Pre-train | age accuracy | difference | p | Holm \
| click ndcg@10 | difference | p | Holm |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
| None | [39.00, 42.00] | - | - | - | [1.00, 4.00] | - | - | - |
| Bag of items | [49.00, 52.00] | +10.00 [+9.50, +30.00] | 0.0250 | 0.0500 \
| - | - | - | - |
| AdaptSSR | [44.68, 47.68] | +5.68 [+5.18, +30.00] | 0.0250 | 0.0500 \
| [0.00, 3.00] | -39.00 [-39.50, +30.00] | 0.0001 | 0.0002 |

## 5 % of the training labels

| Pre-train | age accuracy | Impr |
|---|--:|--:|
| None | **30.00** | - |
| Bag of items | - | - |
| AdaptSSR | - | - |

95 % intervals of the metric, in points, without a comparison with None:

| Pre-train | age accuracy | difference | p | Holm |
|---|--:|--:|--:|--:|
| None | [29.00, 32.00] | - | - | - |
| Bag of items | - | - | - | - |
| AdaptSSR | - | - | - | - |
"""
  )


def test_a_table_without_its_reference_names_no_difference():
  page = markdown({FEW: {'ssr': values_of(0.3)}}, TITLES, reference='bag')
  assert 'in points, without a comparison with Bag of items:' in page
  assert 'difference to' not in page


def test_the_best_is_that_of_the_rows_shown():
  page = markdown(SUMMARY, {'none': 'None', 'ssr': 'AdaptSSR'})
  assert '| AdaptSSR | **45.68 ± 0.10** | 14.20 |' in page


def test_frozen_columns_have_no_improvement():
  summary = {
    AGE: {'none': values_of(0.4), 'ssr': values_of(0.5, improvement=25.0)},
    AGE._replace(mode='frozen'): {'ssr': values_of(0.45, 0.01)},
    AGE._replace(mode='frozen_with_bag'): {
      'bag': values_of(0.5, 0.02),
      'ssr': values_of(0.52, 0.01, p=0.001, improvement=4.0),
    },
  }
  page = markdown(summary, TITLES, reference='bag')
  head, _, *rows = page.split('\n\n')[1].splitlines()
  assert head == (
    '| Pre-train | age accuracy, fine-tuned | Impr | age accuracy, frozen '
    '| age accuracy, frozen + bag |'
  )
  assert rows == [
    '| None | 40.00 | - | - | - |',
    '| Bag of items | - | - | - | 50.00 ± 1.00 |',
    '| AdaptSSR | **50.00** | 25.00 | **45.00 ± 0.50** | **52.00 ± 0.50** † |',
  ]
  assert 'its difference to Bag of items, in points' in page
  titles = [column.title for column in summary]
  assert titles == [
    'age, accuracy',
    'age, accuracy, frozen',
    'age, accuracy, frozen + bag',
  ]


def test_splits_are_summarised_by_hand():
  # Two seeds on split 4, of which the mean counts.
  scores = {
    'none': [(0, 0.125), (4, 0.25), (4, 0.5), (7, 0.625)],
    'one': [(0, 0.25), (4, 0.625), (7, 1.0)],
    'two': [(7, 0.625), (4, 0.375), (0, 0.125)],
  }
  outcomes = {
    name: [Outcome(score, split, None) for split, score in found]
    for name, found in scores.items()
  }
  found = summarise_splits(outcomes, test_per_train=1 / 3)
  assert found['none']['mean'] == 0.375
  assert found['none']['std'] == 0.25
  assert found['none']['error'] == pytest.approx(0.25 / np.sqrt(3))
  assert found['none']['by_split'] == {'0': 0.125, '4': 0.375, '7': 0.625}
  assert found['none']['p'] is found['none']['p_holm'] is None
  # Differences of 1/8, 2/8, 3/8: t^2 = 6 of 2 degrees of freedom.
  p = 1 - np.sqrt(6 / 8)
  assert found['one']['p'] == pytest.approx(p)
  assert found['one']['p_holm'] == pytest.approx(2 * p)
  assert found['one']['difference'] == 0.25
  assert found['one']['improvement'] == pytest.approx(200 / 3)
  low, high = found['one']['difference_interval']
  # The 97.5 % quantile of 2 degrees of freedom is 4.3027.
  assert high - low == pytest.approx(2 * 4.3027 * 0.125 * np.sqrt(2 / 3), 1e-4)
  assert found['two']['p'] == found['two']['p_holm'] == 1
  other = summarise_splits(outcomes, test_per_train=1 / 3, reference='one')
  assert other['none']['difference'] == -0.25
  absent = summarise_splits(outcomes, test_per_train=1 / 3, reference='bag')
  assert {values['p'] for values in absent.values()} == {None}


def outcomes_of(folder, name, values, score):
  """Outcomes of {(split, seed): a column of each test row}."""
  found = []
  for (split, seed), columns in values.items():
    path = folder / f'{name}_{split}_{seed}.npz'
    np.savez(path, **columns)
    found.append(Outcome(score(columns), split, path))
  return found


def test_the_summary_is_that_of_all_runs(tmp_path):
  users = {0: ['a', 'b', 'c', 'c'], 4: ['d', 'a', 'b', 'e']}
  rng = np.random.default_rng(0)

  def runs(splits, seeds):
    return {
      (split, seed): {'rank': rng.integers(1, 14, 4)}
      for split in splits
      for seed in range(seeds)
    }

  def score(columns):
    return float(ndcg(columns['rank']).mean())

  made = {'none': runs(users, 3), 'other': runs(users, 1)}
  outcomes = {
    name: outcomes_of(tmp_path, name, values, score)
    for name, values in made.items()
  }
  found = summarise(outcomes, 'ndcg@10', users)
  scores = {
    name: np.array([score(columns) for columns in values.values()])
    for name, values in made.items()
  }
  for name, runs_made in (('none', 6), ('other', 2)):
    assert found[name]['runs'] == runs_made
    assert found[name]['mean'] == pytest.approx(scores[name].mean())
    std = np.std(scores[name], ddof=1)
    assert found[name]['std'] == pytest.approx(std)
    assert found[name]['error'] == pytest.approx(std / np.sqrt(runs_made))
  assert found['none']['p'] is found['none']['improvement'] is None
  ratio = scores['other'].mean() / scores['none'].mean()
  assert found['other']['improvement'] == pytest.approx(100 * (ratio - 1))
  assert found['other']['test'] == 'bootstrap'
  # The slow way: draw users, take all their rows in all splits and runs.
  slow = slow_bootstrap(made, users)
  for place, name in enumerate(made):
    ends = np.quantile(slow[:, place], [0.025, 0.975])
    assert found[name]['interval'] == pytest.approx(ends, abs=0.03)
  ends = np.quantile(slow[:, 1] - slow[:, 0], [0.025, 0.975])
  assert found['other']['difference_interval'] == pytest.approx(ends, abs=0.04)


def ndcg(rank):
  return np.where(rank <= 10, 1 / np.log2(rank + 1), 0)


def slow_bootstrap(made, users):
  rng = np.random.default_rng(1)
  everybody = sorted({user for named in users.values() for user in named})
  samples = []
  for _ in range(1500):
    drawn = rng.choice(everybody, len(everybody)).tolist()
    row = []
    for values in made.values():
      found = [
        ndcg(columns['rank'][place])
        for who in drawn
        for (split, _), columns in values.items()
        for place, user in enumerate(users[split])
        if user == who
      ]
      row.append(np.mean(found))
    samples.append(row)
  return np.array(samples)


def test_a_single_run_is_compared_by_mcnemar(tmp_path):
  right = {'none': [0, 0, 0, 0, 0, 0, 1, 1], 'other': [1, 1, 1, 1, 1, 1, 1, 0]}
  outcomes = {
    name: outcomes_of(
      tmp_path,
      name,
      {(0, 0): {'correct': np.array(values)}},
      lambda columns: float(columns['correct'].mean()),
    )
    for name, values in right.items()
  }
  users = {0: [f'user {row}' for row in range(8)]}
  found = summarise(outcomes, 'accuracy', users)['other']
  assert found['test'] == 'McNemar'
  assert found['p'] == 2 * 8 / 2**7
  assert found['std'] is None
  assert found['difference'] == 0.875 - 0.25


def test_auc_is_compared_over_users(tmp_path, monkeypatch):
  monkeypatch.setattr(summary, '_RESAMPLES', {'auc': 400})
  rng = np.random.default_rng(0)
  label = rng.integers(0, 2, 80)
  columns = {
    'none': {'label': label, 'score': rng.normal(size=80)},
    'same': {'label': label, 'score': rng.normal(size=80)},
    'good': {'label': label, 'score': label + rng.normal(size=80) / 4},
  }
  outcomes = {
    name: outcomes_of(tmp_path, name, {(0, 0): one}, lambda _: 0.5)
    for name, one in columns.items()
  }
  users = {0: [f'user {row % 40}' for row in range(80)]}
  found = summarise(outcomes, 'auc', users)
  assert found['good']['p'] == 2 / 401
  assert found['same']['p'] > 0.05
  assert found['good']['interval'][0] > 0.9


def sweep_summary():
  names = [f'adaptssr_rho_{rho}' for rho in ('0.1', '0.5')]
  names += [f'adaptssr_{pair}' for pair in ('crop', 'mask', 'reorder')]
  names += ['adaptssr_crop_mask', 'adaptssr_crop_reorder']
  names += ['adaptssr_mask_reorder']
  return {
    column: {name: values_of(0.1 * i) for i, name in enumerate(names)}
    for column in (AGE, CLICK)
  }


SWEEPS = requested_sweeps(('0.5', '0.1'), pairs=True)


def test_sweeps_are_listed_point_by_point():
  found = sweep_points(sweep_summary(), SWEEPS['rho'])
  assert [one['rho'] for one in found] == [0.1, 0.1, 0.5, 0.5]
  assert found[1]['task'] == 'click'
  lines = as_csv(found).splitlines()
  assert lines[0] == 'rho,task,share,metric,mode,mean,std,low,high'
  assert len(lines) == 5
  found = sweep_points(sweep_summary(), SWEEPS['augmentation_pairs'])
  pairs = [(one['first'], one['second']) for one in found]
  assert len(pairs) == 12
  assert len(set(pairs)) == 6
  assert requested_sweeps((), pairs=False) == {}


def drawn(monkeypatch, tmp_path, summary, sweeps):
  """The figures of a comparison by the names of their files."""
  figures = {}
  monkeypatch.setattr(
    'experiments.comparison.pictures.save',
    lambda figure, stem: figures.update({stem.name: figure}),
  )
  draw_all(tmp_path, summary, TITLES, sweeps)
  return figures


def test_the_picture_has_a_panel_a_column(monkeypatch, tmp_path):
  summary = {AGE: SUMMARY[AGE], CLICK: SUMMARY[CLICK]}
  age, click = drawn(monkeypatch, tmp_path, summary, {})['results'].axes
  assert age.get_title() == 'age, accuracy'
  # A line and a point for each method that can do the task.
  assert (len(age.lines), len(click.lines)) == (6, 4)
  assert age.lines[0].get_xdata() == pytest.approx([39, 42])
  assert age.lines[1].get_xdata() == pytest.approx([40])
  names = [label.get_text() for label in age.get_yticklabels()]
  assert names == list(TITLES.values())


def test_curves_and_heat_maps_show_their_numbers(monkeypatch, tmp_path):
  summary = sweep_summary()
  summary[AGE._replace(mode='frozen')] = summary[AGE]
  figures = drawn(monkeypatch, tmp_path, summary, SWEEPS)
  titles = ['age, accuracy', 'click, ndcg@10', 'age, accuracy, frozen']
  assert [axis.get_title() for axis in figures['rho'].axes] == titles
  (line,) = figures['rho'].axes[1].lines
  assert line.get_xydata() == pytest.approx(np.array([[0.1, 0], [0.5, 10]]))
  heat_map = figures['augmentation_pairs'].axes[0]
  names = [label.get_text() for label in heat_map.get_yticklabels()]
  assert names == ['crop', 'mask', 'reorder']
  table = np.asarray(heat_map.images[0].get_array())
  assert table == pytest.approx(
    np.array([[20, 50, 60], [50, 30, 70], [60, 70, 40]])
  )


def test_the_files_are_pictures(tmp_path):
  draw_all(tmp_path, sweep_summary(), {'adaptssr_crop': 'Crop'}, SWEEPS)
  for name in ('results', 'rho', 'augmentation_pairs'):
    png = (tmp_path / f'{name}.png').read_bytes()
    assert png.startswith(b'\x89PNG\r\n\x1a\n')
    assert png.endswith(b'IEND\xaeB`\x82')
    assert '<svg' in (tmp_path / f'{name}.svg').read_text()
