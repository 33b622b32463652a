import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from adaptssr_jax import losses
from tests import reference

FUSIONS = ('adaptive', 'batch_mean', 0.3)


def random_users(batch=5, dim=4, seed=0):
  users = np.random.default_rng(seed).normal(size=(2, 2, batch, dim))
  # Views of one user resemble each other, so that lambda is not always 1.
  return users + 1.5 * users[:1, :1]


def random_similarities(anchors=(6,), seed=0):
  rng = np.random.default_rng(seed)
  shapes = {'implicit': 2, 'explicit': 3, 'negative': 4}
  return [rng.uniform(-1, 1, (*anchors, n)) for n in shapes.values()]


SETTINGS = [
  {'fusion': fusion, 'hard_negatives': hard}
  for fusion in FUSIONS
  for hard in (True, False)
]
# 5 users in blocks of 2: the last block is not full.
SETTINGS += [
  {'fusion': 'adaptive', 'hard_negatives': hard, 'block_size': 2}
  for hard in (True, False)
]


def every_setting(users, where=None):
  """The loss and its gradient for all of SETTINGS, compiled once a shape."""
  # Always a mask: another signature would take seconds to compile.
  where = np.ones(users.shape[2], bool) if where is None else where
  return compiled_settings(users, where)


@jax.jit
def compiled_settings(users, where):
  loss = jax.value_and_grad(losses.adaptssr_loss)
  return [loss(users, where=where, **settings) for settings in SETTINGS]


def mpr(weight=0.4, **settings):
  """A compiled mpr_loss and gradient, by similarities."""
  loss = functools.partial(losses.mpr_loss, weight=weight, **settings)
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def assert_finite(tree):
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


# Agreement with the oracle.


def test_adaptssr_agrees_with_the_oracle():
  where = np.array([True, False, True, True, False])
  users = random_users()
  with jax.enable_x64(True):
    results = every_setting(jnp.asarray(users), where)
  for settings, (value, _) in zip(SETTINGS, results, strict=True):
    formula = {k: v for k, v in settings.items() if k != 'block_size'}
    expected = reference.adaptssr(users, **formula, where=where).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.parametrize('hard_negatives', [True, False])
def test_mpr_agrees_with_the_oracle(hard_negatives):
  implicit, explicit, negative = random_similarities()
  negative[1, 2] = negative[2, :3] = negative[3] = -np.inf
  weight = np.linspace(0, 1, 6)
  rows = zip(implicit, explicit, negative, weight, strict=True)
  expected = [reference.mpr(*row, hard_negatives) for row in rows]
  with jax.enable_x64(True):
    loss = losses.mpr_loss(
      implicit,
      explicit,
      negative,
      weight=weight,
      hard_negatives=hard_negatives,
      reduce_fn=None,
    )
  np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_batch_mean_weight_is_unclamped_over_two_pairs():
  users = random_users()
  users[1, 0] *= -1
  users[1, 1] *= -1
  expected = reference.batch_mean_weight(users, range(5))
  assert expected > 1
  with jax.enable_x64(True):
    weight = losses.augmentation_weight(jnp.asarray(users), fusion='batch_mean')
  assert weight.shape == ()
  np.testing.assert_allclose(weight, expected, rtol=1e-12)


def test_bpr_value():
  loss = losses.bpr_loss(
    jnp.array([1.0, 3.0]), jnp.array([1.0, 2.0]), reduce_fn=None
  )
  np.testing.assert_allclose(loss, [np.log(2), np.log1p(np.exp(-1))], rtol=1e-5)


# What counts.


def test_where_equals_the_kept_users_alone():
  users = random_users()
  where = np.array([True, False, True, True, False])
  # Garbage in padding must reach neither the value nor the gradient.
  garbage = np.where(where[:, None], users, np.nan)
  alone = every_setting(jnp.array(users[:, :, where]))
  masked = every_setting(jnp.array(garbage), where)
  for (value, gradient), (expected, expected_gradient) in zip(
    masked, alone, strict=True
  ):
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    kept = gradient[:, :, where]
    np.testing.assert_allclose(kept, expected_gradient, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, :, ~where], 0)


@pytest.mark.parametrize('hard_negatives', [True, False])
def test_mpr_where_equals_the_kept_anchors_alone(hard_negatives):
  arrays = [jnp.array(x) for x in random_similarities()]
  where = np.array([True, True, False, True, False, False])
  alone, _ = mpr(hard_negatives=hard_negatives)(*(x[where] for x in arrays))
  garbage = [jnp.where(where[:, None], x, jnp.nan) for x in arrays]
  masked, gradients = mpr(hard_negatives=hard_negatives, where=where)(*garbage)
  np.testing.assert_allclose(masked, alone, rtol=1e-5)
  assert_finite(gradients)


def test_bpr_where_equals_the_kept_pairs_alone():
  scores = jnp.array([0.5, jnp.nan, 2.0])
  where = np.array([True, False, True])
  masked, gradient = jax.value_and_grad(losses.bpr_loss)(
    scores, -scores, where=where
  )
  alone = losses.bpr_loss(scores[where], -scores[where])
  np.testing.assert_allclose(masked, alone, rtol=1e-5)
  assert_finite(gradient)


def test_all_masked_is_zero():
  users = jnp.array(random_users())
  for value, gradient in every_setting(users, np.zeros(5, bool)):
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
  arrays = [jnp.array(x) for x in random_similarities()]
  for hard in (True, False):
    value, gradients = mpr(hard_negatives=hard, where=np.zeros(6, bool))(
      *arrays
    )
    assert value == 0
    assert all(np.all(gradient == 0) for gradient in gradients)
  scores = jnp.ones(6)
  value, gradient = jax.value_and_grad(losses.bpr_loss)(
    scores, scores, where=np.zeros(6, bool)
  )
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_reduce_fn_is_the_callers():
  users = jnp.array(random_users())
  each = losses.adaptssr_loss(users, reduce_fn=None)
  assert each.shape == (5,)
  total = losses.adaptssr_loss(users, reduce_fn=jnp.sum)
  np.testing.assert_allclose(total, each.sum(), rtol=1e-5)


# Edges.


@pytest.mark.parametrize('number', [0, 4])
@pytest.mark.parametrize('hard_negatives', [True, False])
def test_without_negatives_the_first_term_remains(number, hard_negatives):
  implicit, explicit, _ = random_similarities()
  arrays = [jnp.array(implicit), jnp.array(explicit)]
  arrays.append(jnp.full((6, number), -jnp.inf))
  value, gradients = mpr(hard_negatives=hard_negatives)(*arrays)
  rows = zip(implicit, explicit, strict=True)
  expected = np.mean(
    [reference.mpr(p, e, [], 0.4, hard_negatives) for p, e in rows]
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert_finite(gradients)
  assert np.abs(gradients[0]).max() > 0


EXTREMES = {
  'zero': np.zeros((2, 2, 5, 4)),
  'one zero': np.where(np.arange(5)[:, None] == 1, 0, random_users()),
  'huge': 1e30 * random_users(),
  'tiny': 1e-30 * random_users(),
  'identical': np.ones((2, 2, 5, 4)),
  'opposite': np.ones((2, 2, 5, 4)) * np.reshape([1, -1], (2, 1, 1, 1)),
  'batch of one': random_users(1),
}


@pytest.mark.parametrize('name', EXTREMES)
def test_extreme_users_stay_finite(name):
  for value, gradient in every_setting(jnp.array(EXTREMES[name], jnp.float32)):
    assert 0 < value < 3
    assert_finite(gradient)


def test_scale_of_users_does_not_matter():
  users = jnp.array(random_users())
  scale = jnp.array([1e-8, 1e-3, 1.0, 1e5, 1e25])[:, None]
  scaled = users * scale.reshape(1, 1, 5, 1)
  np.testing.assert_allclose(
    losses.adaptssr_loss(scaled), losses.adaptssr_loss(users), rtol=1e-5
  )


def test_gradient_is_orthogonal_to_a_user_on_an_axis():
  # The norm of such a user invites a tie with the guard, which halves it.
  users = jnp.array(random_users()).at[0, 0, 0].set(jnp.eye(4)[0])
  for _, gradient in every_setting(users):
    assert abs(gradient[0, 0, 0, 0]) < 1e-6
    assert abs(gradient[0, 0, 0]).max() > 1e-3


def test_bfloat16_users_are_ranked_in_float32():
  users = jnp.array(random_users(), jnp.bfloat16)
  loss = losses.adaptssr_loss(users)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(
    loss, losses.adaptssr_loss(users.astype(jnp.float32)), rtol=1e-5
  )


@pytest.mark.parametrize('shape', [(2, 2, 5), (4, 5, 3), (2, 1, 5, 3)])
def test_refuses_other_shapes(shape):
  # Past the annotations, which only tests check.
  with pytest.raises(ValueError, match='users must be'):
    inspect.unwrap(losses.adaptssr_loss)(jnp.ones(shape))


@pytest.mark.parametrize('fusion', ['adaptiv', None, (0.5,), np.ones(5)])
def test_refuses_another_fusion(fusion):
  users = jnp.array(random_users())
  with pytest.raises(ValueError, match="'adaptive', 'batch_mean' or a number"):
    inspect.unwrap(losses.augmentation_weight)(users, fusion=fusion)


@pytest.mark.parametrize('fusion', [1, 0.25, np.float64(0.25), jnp.array(0.25)])
def test_a_number_is_the_weight(fusion):
  users = jnp.array(random_users())
  assert losses.augmentation_weight(users, fusion=fusion) == float(fusion)


# Transformations.


def test_vmap_is_a_loop_and_jit_changes_nothing():
  loss = losses.adaptssr_loss
  batches = jnp.array([random_users(seed=seed) for seed in range(2)])
  looped = [loss(users) for users in batches]
  np.testing.assert_allclose(jax.vmap(loss)(batches), looped, rtol=1e-5)
  np.testing.assert_allclose(jax.jit(loss)(batches[0]), looped[0], rtol=1e-5)


@pytest.mark.parametrize('hard_negatives', [True, False])
def test_mpr_vmap_is_a_loop_and_jit_changes_nothing(hard_negatives):
  loss = functools.partial(
    losses.mpr_loss, weight=0.4, hard_negatives=hard_negatives
  )
  arrays = [jnp.array(x) for x in random_similarities((3, 2))]
  looped = [loss(*row) for row in zip(*arrays, strict=True)]
  np.testing.assert_allclose(jax.vmap(loss)(*arrays), looped, rtol=1e-5)
  np.testing.assert_allclose(jax.jit(loss)(*arrays), np.mean(looped), rtol=1e-5)


def test_permuting_users_changes_nothing():
  users = jnp.array(random_users())
  order = jnp.array([3, 0, 4, 2, 1])
  for (value, gradient), (expected, expected_gradient) in zip(
    every_setting(users[:, :, order]), every_setting(users), strict=True
  ):
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    permuted = expected_gradient[:, :, order]
    np.testing.assert_allclose(gradient, permuted, atol=1e-6)


@pytest.mark.parametrize('hard_negatives', [True, False])
def test_gradients_with_fixed_weight_are_numerical_ones(hard_negatives):
  with jax.enable_x64(True):
    loss = functools.partial(
      losses.adaptssr_loss, fusion=0.3, hard_negatives=hard_negatives
    )
    users = jnp.array(random_users())
    check_grads(jax.jit(loss), (users,), order=1, rtol=1e-6)
    ranked = functools.partial(
      losses.mpr_loss, weight=0.3, hard_negatives=hard_negatives
    )
    check_grads(
      jax.jit(ranked), tuple(random_similarities()), order=1, rtol=1e-6
    )
    scores = (jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]))
    check_grads(losses.bpr_loss, scores, order=1, rtol=1e-6)


@pytest.mark.parametrize('fusion', FUSIONS)
def test_no_gradient_flows_through_the_weight(fusion):
  def total(users):
    return losses.augmentation_weight(users, fusion=fusion).sum()

  users = jnp.array(random_users())
  np.testing.assert_array_equal(jax.grad(total)(users), 0)
