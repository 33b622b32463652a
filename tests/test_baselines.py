"""Baselines: bags against scikit-learn by hand, counts against brute force."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tiny_runs import files

from adaptssr_jax.data import (
  Ragged,
  UserArrays,
  UserData,
  Vocabulary,
  resplit,
)
from experiments import bag_of_items, baselines, count_ranking
from experiments.settings import SettingsError


def rows_of(rng, count, items=9):
  lengths = rng.integers(1, 7, count)
  return Ragged.from_rows([rng.integers(1, items + 1, n) for n in lengths])


def labelled(classes=3, kind='classification', sizes=(60, 30, 25)):
  """Users whose label tells of their items, and of chance."""
  rng = np.random.default_rng(0)
  splits = {}
  for name, size in zip(('train', 'validation', 'test'), sizes, strict=True):
    items = rows_of(rng, size)
    label = [
      (items[row].max() + rng.integers(2)) % classes for row in range(size)
    ]
    splits[name] = UserArrays(None, items, np.array(label, np.int32))
  names = [f'class {number}' for number in range(classes)]
  return UserData('made', splits, Vocabulary(range(9), names), kind)


def ranked(sizes=(80, 30, 40), targets=12):
  rng = np.random.default_rng(1)
  splits = {}
  for name, size in zip(('train', 'validation', 'test'), sizes, strict=True):
    items = rows_of(rng, size)
    chosen = [
      rng.choice(targets, rng.integers(1, 5), replace=False)
      for _ in range(size)
    ]
    splits[name] = UserArrays(None, items, targets=Ragged.from_rows(chosen))
  return UserData(
    'made', splits, Vocabulary(range(9), range(targets)), 'ranking'
  )


def bag_by_hand(users, length):
  bag = np.zeros((len(users.items), 10))
  for row in range(len(users.items)):
    for item in users.items[row][-length:]:
      bag[row, item] = 1
  return bag


def test_bags_hold_the_last_items_once():
  data = labelled()
  bags = bag_of_items.bags_of(data, 4, 'binary')
  weighed = bag_of_items.bags_of(data, 4, 'tf_idf')
  train = bag_by_hand(data.splits['train'], 4)
  idf = np.log((1 + len(train)) / (1 + train.sum(axis=0))) + 1
  for name, users in data.splits.items():
    bag = bag_by_hand(users, 4)
    assert bags[name].toarray() == pytest.approx(bag)
    expected = bag * idf / np.linalg.norm(bag * idf, axis=1, keepdims=True)
    assert weighed[name].toarray() == pytest.approx(expected)


@pytest.mark.parametrize(
  ('classes', 'kind'), [(3, 'classification'), (2, 'conversion')]
)
def test_the_model_is_that_of_scikit_learn(monkeypatch, classes, kind):
  monkeypatch.setattr(bag_of_items, '_STRENGTHS', {'binary': (0.5,)})
  data = labelled(classes, kind)
  chosen, outputs = bag_of_items.classify_bags(data, 100)
  assert chosen == {'weighting': 'binary', 'C': 0.5}
  train, test = data.splits['train'], data.splits['test']
  model = LogisticRegression(C=0.5, max_iter=300)
  model.fit(bag_by_hand(train, 100), train.label)
  bag = bag_by_hand(test, 100)
  expected = model.predict_log_proba(bag)
  if kind == 'conversion':
    expected = model.decision_function(bag)
  assert outputs['test'] == pytest.approx(expected, abs=1e-3)


def test_validation_chooses_the_strength():
  data = labelled()
  chosen, outputs = bag_of_items.classify_bags(data, 100)
  label = data.splits['validation'].label
  best = (outputs['validation'].argmax(axis=1) == label).mean()
  train = data.splits['train']
  bags = {name: bag_by_hand(u, 100) for name, u in data.splits.items()}
  for strength in (0.001, 0.01, 0.1, 1.0):
    model = LogisticRegression(C=strength, max_iter=300)
    model.fit(bags['train'], train.label)
    assert model.score(bags['validation'], label) <= best + 1e-6
  assert chosen['weighting'] in ('binary', 'tf_idf')


@pytest.mark.parametrize(
  ('classes', 'kind'), [(3, 'classification'), (2, 'conversion')]
)
def test_labels_of_one_class_teach_nothing(classes, kind):
  data = labelled(classes, kind)
  train = data.splits['train']
  only = train._replace(label=np.ones_like(train.label))
  data = data._replace(splits=data.splits | {'train': only})
  _, outputs = bag_of_items.classify_bags(data, 100)
  if kind == 'conversion':
    assert outputs['test'].tolist() == [30] * 25
  else:
    assert outputs['test'].tolist() == [[-np.inf, 0, -np.inf]] * 25


@pytest.mark.parametrize('last_item', [False, True])
def test_ranks_are_those_of_brute_force(monkeypatch, last_item):
  # Blocks of rows that do not divide the split.
  monkeypatch.setattr(count_ranking, '_ROWS', 7)
  data = ranked()
  train = data.splits['train']
  popular, after = [0] * 12, {}
  for row in range(len(train.items)):
    positive = train.targets[row][0]
    popular[positive] += 1
    key = train.items[row][-1], positive
    after[key] = after.get(key, 0) + 1
  _, found = count_ranking.rank_by_counts(data, last_item=last_item)
  ties = 0
  for name in ('validation', 'test'):
    users = data.splits[name]
    for row, rank in enumerate(found[name]):
      last, (own, *others) = users.items[row][-1], users.targets[row]
      scores = {
        target: (after.get((last, target), 0) * last_item, popular[target])
        for target in range(12)
        if target not in others
      }
      above = sum(score > scores[own] for score in scores.values())
      equal = sum(score == scores[own] for score in scores.values()) - 1
      ties += equal > 0
      assert rank == 1 + above + equal / 2
  assert ties > 5


@pytest.mark.parametrize(
  ('method', 'task'), [('bag_of_items', 'age'), ('last_item', 'click')]
)
def test_a_baseline_leaves_what_fine_tuning_leaves(
  tmp_path, data_dir, method, task, capsys
):
  settings = baselines.BaselineSettings(
    workdir=str(tmp_path / 'run'),
    data_dir=data_dir,
    dataset='synthetic_users/tiny',
    method=method,
    task=task,
    split_seed=3,
    train_users=50,
  )
  result = baselines.main(settings)
  found = files(settings.workdir)
  assert {'flags.txt', 'result.json', 'predictions.npz'} == set(found)
  assert json.loads(found['result.json']) == result
  with np.load(tmp_path / 'run' / 'predictions.npz') as predictions:
    data = resplit(baselines.open_data(settings, task), 3)
    test = data.splits['test']
    assert (predictions['example_id'] == test.number).all()
    if task == 'age':
      correct = predictions['logits'].argmax(axis=1) == test.label
      assert (predictions['correct'] == correct).all()
      name, value = 'accuracy', correct.mean()
    else:
      name, value = 'hit_rate@5', (predictions['rank'] <= 5).mean()
  assert result['test'][name] == pytest.approx(value)
  assert f'{method}, {task}: ' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('method', 'task'), [('bag_of_items', 'click'), ('last_item', 'gender')]
)
def test_a_task_of_another_kind_is_refused(tmp_path, data_dir, method, task):
  settings = baselines.BaselineSettings(
    workdir=str(tmp_path),
    data_dir=data_dir,
    dataset='synthetic_users/tiny',
    method=method,
    task=task,
  )
  with pytest.raises(SettingsError, match=f'{method} cannot do --task={task}'):
    baselines.main(settings)
