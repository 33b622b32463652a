"""Probes of frozen vectors against scikit-learn and NumPy."""

import sys
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from adaptssr_jax.data import Ragged, UserArrays, UserData, Vocabulary
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings
from experiments.probing import classifiers, features, probe

SIZES = {'train': 60, 'validation': 40, 'test': 30}


def task_of(label, sizes=SIZES, *, classes=3):
  """A task whose labels are these, split after split."""
  label = np.split(np.asarray(label), np.cumsum(list(sizes.values()))[:-1])
  splits = {
    name: UserArrays(None, None, own)
    for name, own in zip(sizes, label, strict=True)
  }
  names = [f'class {number}' for number in range(classes)]
  return UserData('made', splits, Vocabulary([], names), 'classification')


def split_up(rows, sizes=SIZES):
  parts = np.split(rows, np.cumsum(list(sizes.values()))[:-1])
  return dict(zip(sizes, parts, strict=True))


def made(classes=3, dim=5):
  """Vectors whose class is that of a linear function of them, and noise."""
  rng = np.random.default_rng(0)
  total = sum(SIZES.values())
  vectors = rng.normal(3.0, 2.0, (total, dim)) * [1, 10, 0.1, 1, 1][:dim]
  scores = (vectors - vectors.mean(0)) / vectors.std(0)
  scores = scores @ rng.normal(size=(dim, classes))
  label = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
  return split_up(vectors), task_of(label, classes=classes)


def by_hand(vectors, data, strength, **settings):
  """A regression that starts at 0, and its log-probabilities of all rows."""
  mean, scale = vectors['train'].mean(axis=0), vectors['train'].std(axis=0)
  inputs = {name: (part - mean) / scale for name, part in vectors.items()}
  model = LogisticRegression(C=strength, max_iter=5000, tol=1e-7, **settings)
  model.fit(inputs['train'], data.splits['train'].label)
  return {name: model.predict_log_proba(part) for name, part in inputs.items()}


@pytest.mark.parametrize(('classes', 'weight'), [(3, 1.0), (2, 1.0), (2, 4.0)])
def test_every_regression_is_that_of_scikit_learn(classes, weight):
  vectors, data = made(classes)
  found = list(classifiers.candidates(vectors, data, positive_weight=weight))
  assert [one.chosen['C'] for one in found] == list(classifiers.STRENGTHS)
  settings = {} if weight == 1 else {'class_weight': {1: weight}}
  for one in found:
    expected = by_hand(vectors, data, one.chosen['C'], **settings)
    for name in ('validation', 'test'):
      np.testing.assert_allclose(one.outputs[name], expected[name], atol=0.02)
    hits = (
      expected['validation'].argmax(axis=1) == data.splits['validation'].label
    )
    assert one.score == pytest.approx(hits.mean(), abs=1 / 40)


def test_the_best_is_taken_and_among_equals_the_first():
  results = [
    classifiers.ProbeResult({'C': place}, {}, {}, score)
    for place, score in enumerate([0.2, 0.7, 0.1, 0.7, 0.3])
  ]
  assert classifiers.best_of(results).chosen == {'C': 1}


def test_the_metric_decides():
  _, data = made(2)
  outputs = {'validation': np.tile([0.0, 1.0], (40, 1))}
  label = data.splits['validation'].label
  for metric, expected in (
    (None, label.mean()),
    ('accuracy', label.mean()),
    # All rows are equal.
    ('auc', 0.5),
  ):
    found = classifiers.scored({}, outputs, data, metric)
    assert found.score == pytest.approx(expected)
  assert found.values['accuracy'] == pytest.approx(label.mean())
  only = task_of([1] * 130, classes=2)
  # It has no AUC.
  assert classifiers.scored({}, outputs, only, 'auc').score == 0


def test_validation_and_test_rows_do_not_move_the_features():
  vectors, _ = made()
  found = features.standardised(vectors)['train']
  assert found.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-6)
  assert found.std(axis=0) == pytest.approx(np.ones(5), rel=1e-5)
  again = features.standardised(vectors | {'test': vectors['test'] + 100})
  assert (again['train'] == found).all()


def test_a_feature_that_does_not_vary_becomes_nothing():
  found = features.standardised(
    {
      'train': np.array([[0.1, 1.0], [0.1, 3.0]]),
      'test': np.array([[0.2, 2.0]]),
    }
  )
  assert found['train'].tolist() == [[0, -1], [0, 1]]
  assert found['test'].tolist() == [[0, 0]]


def test_a_class_without_training_rows_has_no_chance():
  vectors, data = made()
  train = data.splits['train']
  data.splits['train'] = train._replace(label=np.minimum(train.label, 1) * 2)
  best = classifiers.best_of(classifiers.candidates(vectors, data))
  assert (best.outputs['test'][:, 1] == -np.inf).all()
  assert np.isfinite(best.outputs['test'][:, [0, 2]]).all()
  total = np.exp(best.outputs['test']).sum(axis=1)
  assert total == pytest.approx(np.ones(30), rel=1e-5)


@pytest.mark.parametrize('classes', [2, 3])
def test_a_linear_head_says_what_the_regression_says(classes):
  vectors, data = made(classes)
  best = classifiers.best_of(classifiers.candidates(vectors, data))
  kernel, bias = classifiers.linear_head(best, vectors['train'], classes)
  logits = vectors['test'] @ kernel + bias
  logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
  np.testing.assert_allclose(logits, best.outputs['test'], atol=1e-4)


def test_trees_see_what_no_line_divides():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(600, 2))
  label = (vectors[:, 0] * vectors[:, 1] > 0).astype(int)
  sizes = {'train': 400, 'validation': 100, 'test': 100}
  vectors, data = split_up(vectors, sizes), task_of(label, sizes, classes=2)
  found = classifiers.candidates(vectors, data, 'lightgbm')
  best = classifiers.best_of(found)
  regression = classifiers.best_of(classifiers.candidates(vectors, data))
  assert best.score > 0.9 > 0.7 > regression.score
  filters = list(warnings.filters)
  found = classifiers.candidates(vectors, data, 'lightgbm')
  first = next(found)
  # Not those of whoever asks for the next.
  assert warnings.filters == filters
  again = classifiers.best_of([first, *found])
  assert again.outputs['test'].tobytes() == best.outputs['test'].tobytes()
  assert list(best.chosen) == ['trees']


def bags_of(histories, num_items):
  """Weighted bags of the histories of all splits."""
  bag = features.bags(Ragged.from_rows(histories), num_items)
  weighted = features.tf_idf(bag)
  ends = np.cumsum([0, *SIZES.values()])
  return {
    name: weighted[start:end]
    for name, start, end in zip(SIZES, ends, ends[1:], strict=False)
  }


def test_a_vector_and_a_bag_count_alike_at_weight_1():
  vectors, _ = made(dim=4)
  bag = bags_of([[1, 2, 3]] * 130, 3)
  found = features.joined(vectors, bag, weight=0.5)['train'].toarray()
  standardised = features.standardised(vectors)['train']
  assert found[:, :4] == pytest.approx(standardised)
  # Each of three items has 1 / sqrt(3) of the length 0.5 sqrt(4).
  expected = np.array([0, 1, 1, 1]) / np.sqrt(3)
  assert found[:, 4:] == pytest.approx(np.tile(expected, (60, 1)))
  length = np.square(found[:, :4]).sum(axis=1).mean()
  assert length == pytest.approx(4.0, rel=1e-5)


def test_validation_chooses_what_the_bag_counts():
  # Noise for vectors, and a bag that tells the class.
  _, data = made(2)
  vectors = split_up(np.random.default_rng(1).normal(size=(130, 5)))
  label = np.concatenate([part.label for part in data.splits.values()])
  bag = bags_of([[1 + number] for number in label.tolist()], 2)
  found = list(probe.probe_candidates(vectors, data, bag=bag))
  best = classifiers.best_of(found)
  alone = classifiers.best_of(classifiers.candidates(vectors, data))
  assert best.score == 1 > alone.score
  assert set(best.chosen) == {'bag_weight', 'C'}
  weights = [one.chosen['bag_weight'] for one in found]
  assert weights == [w for w in probe.BAG_WEIGHTS for _ in range(5)]


def test_the_svd_is_that_of_numpy_and_the_same_every_time():
  rng = np.random.default_rng(0)
  histories = [rng.integers(1, 13, 5) for _ in range(40)]
  bag = features.tf_idf(features.bags(Ragged.from_rows(histories), 12))
  found = features.bag_svd(bag, num_components=3)
  left, values, _ = np.linalg.svd(bag.toarray(), full_matrices=False)
  expected = left[:, :3] * values[:3]
  signs = np.sign((found * expected).sum(axis=0))
  np.testing.assert_allclose(found, expected * signs, atol=1e-3)
  again = features.bag_svd(bag, num_components=3)
  assert again.tobytes() == found.tobytes()
  assert features.bag_svd(bag, num_components=99).shape == (40, 13)


def test_trees_without_lightgbm_say_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'lightgbm', None)
  with pytest.raises(SettingsError, match=r"pip install '.\[lightgbm\]'"):
    probe.check_classes(
      np.arange(2), FinetuneSettings(mode='probe', probe_model='lightgbm')
    )
