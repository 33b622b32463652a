"""Probes of frozen vectors against scikit-learn and NumPy."""

import sys
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from adaptssr_jax.data import Ragged
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings
from experiments.probing import classifiers, features, probe

SIZES = {'train': 60, 'validation': 40, 'test': 30}


def made(classes=3, dim=5, *, seed=0):
  """Vectors whose class is that of a linear function of them, and noise."""
  rng = np.random.default_rng(seed)
  total = sum(SIZES.values())
  vectors = rng.normal(3.0, 2.0, (total, dim)) * [1, 10, 0.1, 1, 1][:dim]
  scores = (vectors - vectors.mean(0)) / vectors.std(0)
  scores = scores @ rng.normal(size=(dim, classes))
  label = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
  order, rows, start = rng.permutation(total), {}, 0
  for name, size in SIZES.items():
    rows[name] = order[start : start + size]
    start += size
  return vectors, classifiers.Labelled(label, rows, classes)


def by_hand(vectors, labelled, strength, **settings):
  """A regression that starts at 0, and its log-probabilities of all rows."""
  train = labelled.rows['train']
  inputs = vectors - vectors[train].mean(axis=0)
  inputs /= vectors[train].std(axis=0)
  model = LogisticRegression(C=strength, max_iter=5000, tol=1e-7, **settings)
  model.fit(inputs[train], labelled.label[train])
  return model.predict_log_proba(inputs)


@pytest.mark.parametrize(('classes', 'weight'), [(3, 1.0), (2, 1.0), (2, 4.0)])
def test_every_regression_is_that_of_scikit_learn(classes, weight):
  vectors, labelled = made(classes)
  labelled = labelled._replace(positive_weight=weight)
  found = list(classifiers.candidates(vectors, labelled))
  assert [one.chosen['C'] for one in found] == list(classifiers.STRENGTHS)
  settings = {} if weight == 1 else {'class_weight': {1: weight}}
  for one in found:
    expected = by_hand(vectors, labelled, one.chosen['C'], **settings)
    for name in ('validation', 'test'):
      np.testing.assert_allclose(
        one.outputs[name], expected[labelled.rows[name]], atol=0.02
      )
    rows = labelled.rows['validation']
    hits = expected[rows].argmax(axis=1) == labelled.label[rows]
    assert one.score == pytest.approx(hits.mean(), abs=1 / 40)


def test_the_best_is_taken_and_among_equals_the_first():
  vectors, labelled = made()
  scores = iter([0.2, 0.7, 0.1, 0.7, 0.3])
  best = classifiers.best_regression(
    vectors, labelled._replace(score=lambda *_: next(scores))
  )
  assert (best.chosen, best.score) == ({'C': 0.01}, 0.7)


def test_validation_and_test_rows_do_not_move_the_features():
  vectors, labelled = made()
  train = labelled.rows['train']
  found = features.standardised(vectors, train)
  assert found[train].mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-6)
  assert found[train].std(axis=0) == pytest.approx(np.ones(5), rel=1e-5)
  changed = vectors.copy()
  changed[labelled.rows['test']] += 100
  again = features.standardised(changed, train)
  assert (again[train] == found[train]).all()


def test_a_feature_that_does_not_vary_becomes_nothing():
  vectors = np.array([[0.1, 1.0], [0.1, 3.0], [0.2, 2.0]])
  found = features.standardised(vectors, np.array([0, 1]))
  assert found.tolist() == [[0, -1], [0, 1], [0, 0]]


def test_a_class_without_training_rows_has_no_chance():
  vectors, labelled = made()
  rows = labelled.rows
  train = rows['train'][labelled.label[rows['train']] != 1]
  labelled = labelled._replace(rows=rows | {'train': train})
  best = classifiers.best_regression(vectors, labelled)
  assert (best.outputs['test'][:, 1] == -np.inf).all()
  assert np.isfinite(best.outputs['test'][:, [0, 2]]).all()
  total = np.exp(best.outputs['test']).sum(axis=1)
  assert total == pytest.approx(np.ones(30), rel=1e-5)


def test_labels_of_one_class_give_that_class_to_all():
  vectors, labelled = made()
  labelled = labelled._replace(label=np.full(len(vectors), 2))
  best = classifiers.best_regression(vectors, labelled)
  assert best.outputs['test'].tolist() == [[-np.inf, -np.inf, 0]] * 30


def test_log_odds_stay_finite():
  outputs = np.array([[-np.inf, 0.0], [np.log(0.25), np.log(0.75)]])
  assert classifiers.task_outputs('conversion', outputs) == pytest.approx(
    [30, np.log(3)]
  )


@pytest.mark.parametrize('classes', [2, 3])
def test_a_linear_head_says_what_the_regression_says(classes):
  vectors, labelled = made(classes)
  best = classifiers.best_regression(vectors, labelled)
  kernel, bias = classifiers.on_vectors(
    best.linear, vectors, labelled.rows['train']
  )
  logits = vectors @ kernel + bias
  logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
  np.testing.assert_allclose(
    logits[labelled.rows['test']], best.outputs['test'], atol=1e-4
  )


def test_trees_see_what_no_line_divides():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(600, 2))
  label = (vectors[:, 0] * vectors[:, 1] > 0).astype(int)
  rows = dict(zip(SIZES, np.split(np.arange(600), [400, 500]), strict=True))
  labelled = classifiers.Labelled(label, rows, 2)
  found = classifiers.candidates(vectors, labelled, 'lightgbm')
  best = classifiers.best_of(found)
  regression = classifiers.best_regression(vectors, labelled)
  assert best.score > 0.9 > 0.7 > regression.score
  filters = list(warnings.filters)
  found = classifiers.candidates(vectors, labelled, 'lightgbm')
  first = next(found)
  # Not those of whoever asks for the next.
  assert warnings.filters == filters
  again = classifiers.best_of([first, *found])
  assert again.outputs['test'].tobytes() == best.outputs['test'].tobytes()
  assert list(best.chosen) == ['trees']


def test_a_vector_and_a_bag_count_alike_at_weight_1():
  vectors, labelled = made(dim=4)
  bag = features.tf_idf(
    features.bags(Ragged.from_rows([[1, 2, 3]] * len(vectors)), 3)
  )
  train = labelled.rows['train']
  found = features.joined(vectors, bag, train, weight=0.5).toarray()
  assert found[:, :4] == pytest.approx(features.standardised(vectors, train))
  # Each of three items has 1 / sqrt(3) of the length 0.5 sqrt(4).
  expected = np.array([0, 1, 1, 1]) / np.sqrt(3)
  assert found[:, 4:] == pytest.approx(np.tile(expected, (130, 1)))
  length = np.square(found[train, :4]).sum(axis=1).mean()
  assert length == pytest.approx(4.0, rel=1e-5)


def test_validation_chooses_what_the_bag_counts():
  # Noise for vectors, and a bag that tells the class.
  _, labelled = made(2)
  vectors = np.random.default_rng(1).normal(size=(130, 5))
  histories = Ragged.from_rows([[1 + int(label)] for label in labelled.label])
  bag = features.tf_idf(features.bags(histories, 2))
  best = classifiers.best_of(
    classifiers.joined_candidates(vectors, bag, labelled)
  )
  assert best.score == 1 > classifiers.best_regression(vectors, labelled).score
  assert set(best.chosen) == {'bag_weight', 'C'}
  found = list(classifiers.joined_candidates(vectors, bag, labelled))
  weights = [one.chosen['bag_weight'] for one in found]
  assert weights == [w for w in classifiers.BAG_WEIGHTS for _ in range(5)]


def test_bags_of_many_users_are_those_of_each(monkeypatch):
  monkeypatch.setattr(features, '_BLOCK', 2)
  rows = [[3, 1, 3], [], [2], [1, 2, 3, 1], [3]]
  found = features.bags(Ragged.from_rows(rows), 3, max_length=3).toarray()
  for bag, items in zip(found, rows, strict=True):
    expected = np.isin(np.arange(4), items[-3:])
    assert bag.tolist() == expected.tolist()


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
