"""Both kinds of collapse are reported, and a healthy run is not."""

import types

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.ops.buckets import AT_ONCE
from experiments.flags.pretraining import PretrainSettings
from experiments.pretraining import validation
from experiments.pretraining.validation import (
  collapse_warning,
  make_validation_step,
  spread_of_users,
  validate,
)
from experiments.run.batches import Batches

HEALTHY = {'mean_cosine': 0.1, 'effective_rank': 38.0, 'uniformity': -3.0}
VIEWS = {'explicit': 0.8, 'other': 0.1}


def test_users_in_all_directions_are_spread():
  users = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
  spread = spread_of_users(users)
  assert abs(spread['mean_cosine']) < 0.05
  assert 15 < spread['effective_rank'] <= 16
  assert spread['uniformity'] < -3
  assert collapse_warning(spread, objective=('adaptssr',)) == ''


@pytest.mark.parametrize(
  ('center', 'noise', 'words'),
  [
    (1.0, 0.01, 'all users have nearly the same'),
    (0.0, 1.0, 'directions only'),
  ],
)
def test_users_at_a_point_or_on_a_line_are_not(center, noise, words):
  rng = np.random.default_rng(0)
  along = rng.normal(center, noise, size=(400, 1))
  users = along * np.ones((1, 16)) + rng.normal(scale=1e-4, size=(400, 16))
  spread = spread_of_users(users.astype(np.float32))
  assert words in collapse_warning(spread, objective=('masked_items',))


def test_three_users_have_no_more_directions():
  spread = spread_of_users(np.eye(3, 16, dtype=np.float32))
  assert spread['effective_rank'] < 3.01
  for largest, words in ((3, ''), (400, 'directions only')):
    found = collapse_warning(
      spread | {'effective_rank': 2.9}, objective=(), largest_rank=largest
    )
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    (HEALTHY, ''),
    (HEALTHY | VIEWS, ''),
    # Everything pulled into one point, as after a warm start too short.
    (HEALTHY | {'mean_cosine': 0.9965}, 'mean cosine 0.997'),
    (HEALTHY | {'effective_rank': 2.5}, '2.5 directions'),
    # Everything pushed apart, as without a warm start: lambda stays near 0.5.
    (HEALTHY | {'explicit': 0.13, 'other': 0.13}, 'hardly more similar'),
  ],
)
def test_what_is_wrong_is_said_with_its_numbers(values, words):
  warning = collapse_warning(values, objective=('adaptssr',))
  assert bool(warning) == ('--init_from' in warning)
  assert words in warning
  assert bool(warning) == bool(words)


USERS = UserArrays(None, Ragged.from_rows([[1]] * 20))


def test_a_collapsed_state_has_no_score(capsys):
  keys = []

  def step(vectors, batch, key):
    keys.append(key)
    return {'loss': (3.0, 6.0)}, vectors

  spread = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
  for vectors, expected in ((spread, -0.5), (np.ones_like(spread), None)):
    values, score = validate(
      types.SimpleNamespace(step=5, params=vectors),
      users=USERS,
      batch_size=16,
      length=1,
      objective=('adaptssr',),
      step=step,
      key='the same at each call',
      probes={},
    )
    assert (values['validation_loss'], score) == (0.5, expected)
  assert capsys.readouterr().out.startswith('WARNING at step 5: all users')
  assert keys == ['the same at each call'] * 4


def test_validation_is_without_dropout(monkeypatch):
  seen = []
  monkeypatch.setattr(validation, 'make_objective', seen.append)
  training = types.SimpleNamespace(
    encoder=UserEncoder(9),
    batches=Batches(USERS, batch_size=16, length=6),
    sequences=types.SimpleNamespace(buckets=AT_ONCE),
    num_steps=1,
  )
  make_validation_step(PretrainSettings(), training)
  (context,) = seen
  assert context.encoding.deterministic
  assert not context.is_training
