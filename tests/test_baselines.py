"""Baselines: bags against scikit-learn, counts against brute force."""

import collections
import json
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from adaptssr_jax.data import (
  Ragged,
  Rows,
  UserArrays,
  UserData,
  Vocabulary,
  resplit,
)
from experiments import baselines
from experiments.finetuning.data import with_first_rows
from experiments.flags.binder import SettingsError
from experiments.probing import rankings
from experiments.probing.features import bag_svd, bags, tf_idf
from experiments.probing.probe import bags_by_split
from experiments.run.data import open_data
from tests.labelled_rows import arrays_of, rows_of
from tests.tiny_runs import files


def histories(rng, count, items=9):
  lengths = rng.integers(1, 7, count)
  return Ragged.from_rows([rng.integers(1, items + 1, n) for n in lengths])


def labelled(classes=3, kind='classification', sizes=(60, 30, 25)):
  """Users whose label tells of their items, and of chance."""
  rng = np.random.default_rng(0)
  splits = {}
  for name, size in zip(('train', 'validation', 'test'), sizes, strict=True):
    items = histories(rng, size)
    label = [
      (items[row].max() + rng.integers(2)) % classes for row in range(size)
    ]
    ids = Ragged.from_rows([[row] for row in range(size)], np.uint8)
    splits[name] = UserArrays(ids, items, np.array(label, np.int32))
  names = [f'class {number}' for number in range(classes)]
  return UserData('made', splits, Vocabulary(range(9), names), kind)


def ranked(sizes=(80, 30, 40), targets=12, *, seed=1):
  """Rankings of rows that are some of the positives of half as many users."""
  rng = np.random.default_rng(seed)
  splits = {}
  for name, size in zip(('train', 'validation', 'test'), sizes, strict=True):
    chosen = [
      rng.choice(targets, rng.integers(2, 5), replace=False)
      for _ in range(size // 2)
    ]
    rows = Rows(
      [f'{user}' for user in range(size // 2)],
      histories(rng, size // 2),
      targets=Ragged.from_rows(chosen),
    )
    part = rng.permutation(len(rows.targets.values))[:size]
    splits[name] = arrays_of(rows.with_positives(part))
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
  found = bags_by_split(data, max_length=4)
  train = bag_by_hand(data.splits['train'], 4)
  idf = np.log((1 + len(train)) / (1 + train.sum(axis=0))) + 1
  for name, users in data.splits.items():
    bag = bag_by_hand(users, 4)
    assert found[name].toarray() == pytest.approx(bag)
    expected = bag * idf / np.linalg.norm(bag * idf, axis=1, keepdims=True)
    weighed = tf_idf(found[name], counted=found['train']).toarray()
    assert weighed == pytest.approx(expected)


@pytest.mark.parametrize(
  ('classes', 'kind'), [(3, 'classification'), (2, 'conversion')]
)
def test_the_model_is_that_of_scikit_learn(monkeypatch, classes, kind):
  strengths = {'binary': (0.5,), 'tf_idf': ()}
  monkeypatch.setattr(baselines, '_STRENGTHS', strengths)
  data = labelled(classes, kind)
  best = baselines.classify_bags(data, 100)
  assert best.chosen == {'weighting': 'binary', 'C': 0.5}
  train, test = data.splits['train'], data.splits['test']
  model = LogisticRegression(C=0.5, max_iter=300)
  model.fit(bag_by_hand(train, 100), train.label)
  bag = bag_by_hand(test, 100)
  expected = model.predict_log_proba(bag)
  if kind == 'conversion':
    expected = model.decision_function(bag)
  assert best.outputs['test'] == pytest.approx(expected, abs=1e-3)


def test_validation_chooses_the_strength():
  data = labelled()
  best = baselines.classify_bags(data, 100)
  label = data.splits['validation'].label
  accuracy = (best.outputs['validation'].argmax(axis=1) == label).mean()
  train = data.splits['train']
  bags = {name: bag_by_hand(u, 100) for name, u in data.splits.items()}
  for strength in (0.001, 0.01, 0.1, 1.0):
    model = LogisticRegression(C=strength, max_iter=300)
    model.fit(bags['train'], train.label)
    assert model.score(bags['validation'], label) <= accuracy + 1e-6
  assert best.chosen['weighting'] in ('binary', 'tf_idf')


@pytest.mark.parametrize(
  ('classes', 'kind'), [(3, 'classification'), (2, 'conversion')]
)
def test_labels_of_one_class_teach_nothing(classes, kind):
  data = labelled(classes, kind)
  train = data.splits['train']
  only = train._replace(label=np.ones_like(train.label))
  data = data._replace(splits=data.splits | {'train': only})
  outputs = baselines.classify_bags(data, 100).outputs
  if kind == 'conversion':
    assert outputs['test'].tolist() == [30] * 25
  else:
    assert outputs['test'].tolist() == [[-np.inf, 0, -np.inf]] * 25


def test_the_svd_is_of_all_rows_and_the_labels_of_some():
  data = labelled(2)
  rows = [items for users in data.splits.values() for items in users.items]
  vectors = bag_svd(tf_idf(bags(Ragged.from_rows(rows), 9)), num_components=4)
  best = baselines.probe_svd(
    data, with_first_rows(data, 20), 0, num_components=4
  )
  inputs = (vectors - vectors[:20].mean(axis=0)) / vectors[:20].std(axis=0)
  model = LogisticRegression(C=best.chosen['C'], max_iter=1000)
  model.fit(inputs[:20], data.splits['train'].label[:20])
  expected = model.predict_log_proba(inputs[90:])
  assert best.outputs['test'] == pytest.approx(expected, abs=0.02)
  assert set(best.chosen) == {'num_components', 'C'}


def test_a_ridge_reads_vectors_in_a_ranking():
  data, rng = ranked(), np.random.default_rng(3)
  vectors = {
    name: rng.normal(2, 3, (len(users.items), 5)).astype(np.float32)
    for name, users in data.splits.items()
  }
  for users in vectors.values():
    # It tells nothing.
    users[:, 0] = 7
  found = list(rankings.ranking_candidates(vectors, data, 'ndcg@10'))
  assert [result.chosen['ridge'] for result in found] == [1, 0.1, 0.01, 0.001]
  train = data.splits['train']
  chosen = np.zeros((len(train.items), 12))
  for user, row in zip(train.user_of_rows(), rows_of(train), strict=True):
    chosen[user, row[2]] = 1
  mean = vectors['train'].mean(axis=0)
  scale = np.maximum(vectors['train'].std(axis=0), 1e-9)
  for result in found:
    model = Ridge(alpha=result.chosen['ridge'] * len(chosen))
    model.fit((vectors['train'] - mean) / scale, chosen)
    for name, ranks in result.outputs.items():
      users = data.splits[name]
      scores = model.predict((vectors[name] - mean) / scale)
      expected = []
      for user, row in zip(users.user_of_rows(), rows_of(users), strict=True):
        _, _, own, others = row
        rivals = np.delete(scores[user], [own, *others])
        expected.append(1 + (rivals > scores[user, own]).sum())
      assert ranks.tolist() == expected
    ndcg = ndcg_by_hand(result.outputs['validation']) / 30
    assert result.score == pytest.approx(ndcg)


def counts_by_hand(data, histories):
  """How often targets are met after an item, and at all."""
  train = data.splits['train']
  rows = rows_of(train)
  steps = [(items[-1], positive) for _, items, positive, _ in rows]
  seen = {user: items for user, items, *_ in rows}
  for items in seen.values() if histories else ():
    before = (None, *items[:-1])
    # Item i is target i - 1.
    steps += [(i, j - 1) for i, j in zip(before, items, strict=True)]
  return collections.Counter(steps), collections.Counter(j for _, j in steps)


def ranks_by_hand(data, name, last_item, histories):
  after, popular = counts_by_hand(data, histories)
  ranks = []
  for _, items, own, others in rows_of(data.splits[name]):
    scores = {
      target: (after[items[-1], target] * last_item, popular[target])
      for target in range(12)
      if target not in others
    }
    above = sum(score > scores[own] for score in scores.values())
    equal = sum(score == scores[own] for score in scores.values()) - 1
    ranks.append(1 + above + equal / 2)
  return ranks


def ndcg_by_hand(ranks):
  return sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10)


@pytest.mark.parametrize('last_item', [False, True])
def test_ranks_are_those_of_brute_force(monkeypatch, last_item):
  # Blocks of rows that do not divide the split.
  monkeypatch.setattr(rankings, '_ROWS', 7)
  choices = set()
  for seed in range(6):
    data = ranked(seed=seed)
    best = baselines.rank_by_counts(data, last_item=last_item)
    values = {
      histories: ndcg_by_hand(
        ranks_by_hand(data, 'validation', last_item, histories)
      )
      for histories in (False, True)
    }
    assert best.chosen == {'histories': values[True] > values[False]}
    for name, ranks in best.outputs.items():
      expected = ranks_by_hand(data, name, last_item, best.chosen['histories'])
      assert ranks.tolist() == expected
    choices.add(best.chosen['histories'])
  # Or one of the two definitions was never seen.
  assert choices == {False, True}


@pytest.mark.parametrize(
  ('method', 'task'),
  [
    ('bag_of_items', 'age'),
    ('bag_svd', 'age'),
    ('last_item', 'click'),
    ('bag_svd', 'click'),
  ],
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
    data = resplit(open_data(settings, task), 3)
    test = data.splits['test']
    assert (predictions['example_id'] == test.number).all()
    users = test.user_ids(test.user_of_rows())
    assert predictions['user_id'].tolist() == users
    if task == 'age':
      assert predictions['classes'].tolist() == data.vocabulary.labels
      correct = predictions['logits'].argmax(axis=1) == test.label
      assert (predictions['correct'] == correct).all()
      name, value = 'accuracy', correct.mean()
    else:
      name, value = 'hit_rate@5', (predictions['rank'] <= 5).mean()
  assert result['test'][name] == pytest.approx(value)
  assert f'{method}, {task}: ' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'task': 'click'}, 'bag_of_items cannot do --task=click'),
    ({'method': 'last_item'}, 'last_item cannot do --task=gender'),
    ({'method': 'last_item', 'max_length': 9}, '--max_length is for bags'),
    ({'num_components': 8}, '--num_components is for --method=bag_svd'),
    ({'task': 'gendr'}, "did you mean 'gender'"),
    ({'task': 'pretrain'}, '--task=pretrain has no labels and no targets'),
    ({'train_users': 121}, '121 is more than the 120 training rows of gender'),
  ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path, data_dir, changes, words):
  settings = baselines.BaselineSettings(
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    workdir=str(tmp_path / 'run'),
    **changes,
  )
  with pytest.raises(SettingsError, match=words):
    baselines.main(settings)
  assert not (tmp_path / 'run').exists()
