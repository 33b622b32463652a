"""Both kinds of collapse are reported, and a healthy run is not."""

import numpy as np
import pytest

from experiments.pretraining.validation import collapse_warning, spread_of_users

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
