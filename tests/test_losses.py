"""The AdaptSSR, MPR and BPR losses: values, masks, gradients.

`test_every_loss` tests what holds of all losses of users.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import losses
from tests import reference
from tests.central_differences import assert_gradients_of_values


def random_users(batch=5, dim=4, seed=0):
  users = np.random.default_rng(seed).normal(size=(2, 2, batch, dim))
  # Views of one user resemble each other, so that lambda is not always 1.
  return users + 1.5 * users[:1, :1]


def random_similarities(anchors=(6,), seed=0):
  rng = np.random.default_rng(seed)
  shapes = {'implicit': 2, 'explicit': 3, 'negative': 4}
  return [rng.uniform(-1, 1, (*anchors, n)) for n in shapes.values()]


# All kinds of lambda, and hard and all negatives, at once and in blocks.
SETTINGS = [
  {'fusion': 'adaptive'},
  {'fusion': 'batch_mean', 'hard_negatives': False},
  {'fusion': 0.3},
  {'fusion': 0.3, 'hard_negatives': False},
  # 5 users in blocks of 2: the last block is not full.
  {'fusion': 0.3, 'block_size': 2},
  {'fusion': 0.3, 'hard_negatives': False, 'block_size': 2},
]


@jax.jit
def every_setting(users, where):
  """The loss and its gradient for each of SETTINGS."""
  loss = jax.value_and_grad(losses.adaptssr_loss)
  return [loss(users, where=where, **each) for each in SETTINGS]


def every_mpr(similarities, weight=0.4, where=None):
  """Losses of anchors, loss and gradients, for hard and then all negatives."""
  similarities = [jnp.asarray(x) for x in similarities]
  anchors = len(similarities[0])
  where = np.ones(anchors, bool) if where is None else where
  weight = jnp.broadcast_to(jnp.asarray(weight, float), anchors)
  return [
    compiled_mpr(*similarities, weight, where, hard) for hard in (True, False)
  ]


@functools.partial(jax.jit, static_argnames='hard')
def compiled_mpr(implicit, explicit, negative, weight, where, hard):
  def loss(implicit, explicit, negative, weight, **settings):
    return losses.mpr_loss(
      implicit,
      explicit,
      negative,
      weight=weight,
      where=where,
      hard_negatives=hard,
      **settings,
    )

  args = implicit, explicit, negative, weight
  both = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*args)
  return loss(*args, reduce_fn=None), *both


def assert_finite(tree):
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


# The losses agree with the slow reference.

SOME = np.array([True, False, True, True, False])


def oracle(users, **settings):
  settings = {k: v for k, v in settings.items() if k != 'block_size'}
  return reference.adaptssr(users, **settings, where=SOME).mean()


def test_adaptssr_agrees_with_the_oracle():
  users = random_users()
  with jax.enable_x64(True):
    results = every_setting(jnp.asarray(users), SOME)
  for settings, (value, _) in zip(SETTINGS, results, strict=True):
    np.testing.assert_allclose(value, oracle(users, **settings), rtol=1e-12)


def test_mpr_agrees_with_the_oracle():
  implicit, explicit, negative = random_similarities()
  negative[1, 2] = negative[2, :3] = negative[3] = -np.inf
  weight = np.linspace(0, 1, 6)
  with jax.enable_x64(True):
    found = every_mpr((implicit, explicit, negative), weight)
  rows = list(zip(implicit, explicit, negative, weight, strict=True))
  for hard, (each, *_) in zip((True, False), found, strict=True):
    expected = [reference.mpr(*row, hard) for row in rows]
    np.testing.assert_allclose(each, expected, rtol=1e-12)


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


# Masked examples do not contribute.


def test_mpr_where_equals_the_kept_anchors_alone():
  arrays = [jnp.array(x) for x in random_similarities()]
  where = np.array([True, True, False, True, False, False])
  garbage = [jnp.where(where[:, None], x, jnp.nan) for x in arrays]
  weight = np.where(where, 0.4, np.nan)
  for (_, value, gradients), (each, *_) in zip(
    every_mpr(garbage, weight, where), every_mpr(arrays), strict=True
  ):
    np.testing.assert_allclose(value, each[where].mean(), rtol=1e-5)
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
  nobody = np.zeros(6, bool)
  for _, value, gradients in every_mpr(random_similarities(), where=nobody):
    assert value == 0
    assert all(np.all(gradient == 0) for gradient in gradients)
  scores = jnp.ones(6)
  value, gradient = jax.value_and_grad(losses.bpr_loss)(
    scores, scores, where=nobody
  )
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_reduce_fn_is_the_callers():
  users = jnp.array(random_users())
  each = losses.adaptssr_loss(users, reduce_fn=None)
  assert each.shape == (5,)
  total = losses.adaptssr_loss(users, reduce_fn=jnp.sum)
  np.testing.assert_allclose(total, each.sum(), rtol=1e-5)


# Edge cases.


@pytest.mark.parametrize('number', [0, 4])
def test_without_negatives_the_first_term_remains(number):
  implicit, explicit, _ = random_similarities()
  rows = list(zip(implicit, explicit, strict=True))
  found = every_mpr((implicit, explicit, np.full((6, number), -np.inf)))
  for hard, (_, value, gradients) in zip((True, False), found, strict=True):
    expected = np.mean([reference.mpr(p, e, [], 0.4, hard) for p, e in rows])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_finite(gradients)
    assert np.abs(gradients[0]).max() > 0


def test_gradient_is_orthogonal_to_a_user_on_an_axis():
  # A guard by `maximum` that ties with the norm would halve the gradient.
  users = jnp.array(random_users()).at[0, 0, 0].set(jnp.eye(4)[0])
  for _, gradient in every_setting(users, np.ones(5, bool)):
    assert abs(gradient[0, 0, 0, 0]) < 1e-6
    assert abs(gradient[0, 0, 0]).max() > 1e-3


# Transformations.


@pytest.mark.parametrize('hard_negatives', [True, False])
def test_mpr_vmap_is_a_loop_and_jit_changes_nothing(hard_negatives):
  loss = functools.partial(
    losses.mpr_loss, weight=0.4, hard_negatives=hard_negatives
  )
  arrays = [jnp.array(x) for x in random_similarities((3, 2))]
  looped = [loss(*row) for row in zip(*arrays, strict=True)]
  mapped = jax.jit(jax.vmap(loss))(*arrays)
  np.testing.assert_allclose(mapped, looped, rtol=1e-5)
  np.testing.assert_allclose(jax.jit(loss)(*arrays), np.mean(looped), rtol=1e-5)


def mpr_of(*args):
  _, values, gradients = zip(*every_mpr(args[:3], args[3]), strict=True)
  return np.array(values), [
    np.array(leaves) for leaves in zip(*gradients, strict=True)
  ]


def test_gradients_are_those_of_the_values():
  bpr = jax.jit(jax.value_and_grad(losses.bpr_loss, argnums=(0, 1)))
  with jax.enable_x64(True):
    weight = np.linspace(0.1, 0.9, 6)
    assert_gradients_of_values(mpr_of, [*random_similarities(), weight])
    assert_gradients_of_values(bpr, np.array([[1.0, -2.0], [0.5, 3.0]]))


@pytest.mark.parametrize('fusion', ['adaptive', 'batch_mean', 0.3])
def test_no_gradient_flows_through_the_weight(fusion):
  def total(users):
    return losses.augmentation_weight(users, fusion=fusion).sum()

  users = jnp.array(random_users())
  np.testing.assert_array_equal(jax.grad(total)(users), 0)


@jax.jit
def gradients_of_the_first(users):
  """Gradients of the first user's loss, at once and in blocks."""
  each = functools.partial(losses.adaptssr_loss, fusion=0.3, reduce_fn=None)
  return [
    jax.grad(lambda users, size=size: each(users, block_size=size)[0])(users)
    for size in (None, 2)
  ]


def test_of_equally_hard_negatives_the_first_gets_the_gradient():
  users = jnp.array(random_users(4))
  # All four vectors of three users are equal: a tie of twelve.
  users = users.at[:, :, 1:].set(jnp.array([1.0, -2.0, 0.5, 1.0]))
  gradients = gradients_of_the_first(users)
  split, first = (np.linalg.norm(gradient, axis=-1) for gradient in gradients)
  np.testing.assert_allclose(split[:, :, 1:], split[0, 0, 1], rtol=1e-5)
  assert first[0, 0, 1] > 1e-3
  np.testing.assert_allclose(first[0, 0, 1], 12 * split[0, 0, 1], rtol=1e-5)
  assert np.count_nonzero(first[:, :, 1:]) == 1
  # The gradients of the anchor itself are equal.
  own = [gradient[:, :, 0] for gradient in gradients]
  np.testing.assert_allclose(*own, atol=1e-6)


@pytest.mark.parametrize('block_size', [0, -3])
def test_refuses_empty_blocks(block_size):
  with pytest.raises(ValueError, match='block_size must be at least 1 or None'):
    inspect.unwrap(losses.adaptssr_loss)(
      jnp.array(random_users()), block_size=block_size
    )
