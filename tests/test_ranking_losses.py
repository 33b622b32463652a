"""The list form, temperatures, smooth extremes, more than two views."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import diagnostics, losses
from tests import reference

VIEWS, BATCH, DIM = 3, 5, 4
FORMS = [
  {'form': 'list', 'temperature': 0.5},
  {'form': 'pairs', 'temperature': 0.2, 'smooth': 0.3},
  {'form': 'pairs', 'hard_negatives': False, 'temperature': 2.0},
]


def random_users(views=VIEWS, seed=0):
  rng = np.random.default_rng(seed)
  users = rng.normal(size=(views, 2, BATCH, DIM))
  return (users + 1.5 * users[:1, :1]).astype(np.float32)


def listwise(p, e, n, weight, temperature):
  """The list loss of one anchor, by the formula."""
  p, e, n = (
    [math.exp(x / temperature) for x in values] for values in (p, e, n)
  )
  first = [-math.log(x / (x + sum(e) + sum(n))) for x in p]
  second = [-math.log(x / (x + sum(n))) for x in e]
  mean = weight * sum(first) / len(p)
  return mean + (1 - weight) * sum(second) / len(e)


def soft_max(values, smooth):
  return smooth * math.log(sum(math.exp(x / smooth) for x in values))


def test_a_list_is_a_likelihood_of_its_order():
  p, e, n = [0.9, 0.7], [0.5, 0.1], [0.2, -0.3, 0.0]
  found = losses.listwise_ranking_loss(
    jnp.array([p]), jnp.array([e]), jnp.array([n]), weight=0.3, temperature=0.5
  )
  np.testing.assert_allclose(found, listwise(p, e, n, 0.3, 0.5), rtol=1e-6)


def test_smooth_extremes_and_temperature_of_pairs():
  p, e, n = [0.9, 0.7], [0.5, 0.1], [0.2, -0.3, 0.0]
  found = losses.mpr_loss(
    jnp.array([p]),
    jnp.array([e]),
    jnp.array([n]),
    weight=0.3,
    temperature=0.5,
    smooth=0.2,
  )
  low_p, low_e = (-soft_max([-x for x in values], 0.2) for values in (p, e))
  margin = 0.3 * (low_p - soft_max(e, 0.2)) + 0.7 * (low_e - soft_max(n, 0.2))
  expected = math.log1p(math.exp(-margin / 0.5))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # The limit is the paper's loss.
  nearly = losses.mpr_loss(
    jnp.array([p]), jnp.array([e]), jnp.array([n]), weight=0.3, smooth=1e-3
  )
  np.testing.assert_allclose(nearly, reference.mpr(p, e, n, 0.3), rtol=1e-4)


def of_three_views(users, settings):
  """The loss of each user, by loops over views."""
  users = np.asarray(users, float)
  found = []
  for i in range(BATCH):
    pairs = [
      max(reference.cosine(users[v][q][i], users[w][r][i]), 0)
      for v in range(VIEWS)
      for w in range(v)
      for q in (0, 1)
      for r in (0, 1)
    ]
    weight = 1 - np.mean(pairs)
    total = 0.0
    for view in range(VIEWS):
      anchor = users[view][0][i]
      p = [reference.cosine(anchor, users[view][1][i])]
      e = [
        reference.cosine(anchor, users[w][q][i])
        for w in range(VIEWS)
        for q in (0, 1)
        if w != view
      ]
      n = [
        reference.cosine(anchor, users[w][q][j])
        for w in range(VIEWS)
        for q in (0, 1)
        for j in range(BATCH)
        if j != i
      ]
      t = settings['temperature']
      if settings['form'] == 'list':
        total += listwise(p, e, n, weight, t)
      elif not settings.get('hard_negatives', True):
        scaled = [[x / t for x in values] for values in (p, e, n)]
        total += reference.mpr(*scaled, weight, hard_negatives=False)
      else:
        s = settings['smooth']
        margin = weight * (p[0] - soft_max(e, s)) + (1 - weight) * (
          -soft_max([-x for x in e], s) - soft_max(n, s)
        )
        total += math.log1p(math.exp(-margin / t))
    found.append(total / VIEWS)
  return found


@pytest.mark.parametrize('settings', FORMS, ids=str)
def test_three_views_against_loops_at_once_and_in_blocks(settings):
  users = random_users()
  loss = functools.partial(losses.adaptssr_loss, reduce_fn=None, **settings)
  expected = of_three_views(users, settings)
  for block_size in (None, 2):
    each = jax.jit(functools.partial(loss, block_size=block_size))(users)
    np.testing.assert_allclose(each, expected, rtol=1e-5)


def test_diagnostics_of_three_views():
  users = random_users()
  compute = jax.jit(diagnostics.view_similarities)
  found = compute(users)
  explicit = [
    reference.cosine(users[v][0][0], users[w][q][0])
    for v in range(VIEWS)
    for w in range(VIEWS)
    for q in (0, 1)
    if w != v
  ]
  np.testing.assert_allclose(found.explicit[0], np.mean(explicit), rtol=1e-5)
  # All vectors are equal.
  same = compute(np.ones_like(users))
  np.testing.assert_allclose(same.explicit, 1, rtol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    ({'form': 'tree'}, "form must be 'pairs' or 'list', not 'tree'"),
    ({'temperature': 0.0}, 'temperature must be positive'),
    ({'form': 'list', 'temperature': -1.0}, 'temperature must be positive'),
    ({'smooth': -0.1}, 'smooth must be at least 0'),
    ({'form': 'list', 'smooth': 0.1}, "form='list' takes neither"),
    ({'form': 'list', 'hard_negatives': False}, "form='list' takes neither"),
    ({'smooth': 0.1, 'hard_negatives': False}, 'smooth needs hard_negatives'),
  ],
)
def test_refuses_settings_without_meaning(settings, words):
  with pytest.raises(ValueError, match=words):
    inspect.unwrap(losses.adaptssr_loss)(random_users(), **settings)


@pytest.mark.parametrize('shape', [(2, 2, 5), (4, 5, 3), (2, 1, 5, 3)])
def test_refuses_other_shapes(shape):
  # Unwrapped, because in tests the annotations would raise first.
  with pytest.raises(ValueError, match='users must be'):
    inspect.unwrap(losses.adaptssr_loss)(jnp.ones(shape))


@pytest.mark.parametrize('fusion', ['adaptiv', None, (0.5,), np.ones(5)])
def test_refuses_another_fusion(fusion):
  users = random_users()
  with pytest.raises(ValueError, match="'adaptive', 'batch_mean' or a number"):
    inspect.unwrap(losses.augmentation_weight)(users, fusion=fusion)


@pytest.mark.parametrize('fusion', [1, 0.25, np.float64(0.25), jnp.array(0.25)])
def test_a_number_is_the_weight(fusion):
  users = random_users()
  assert losses.augmentation_weight(users, fusion=fusion) == float(fusion)
