"""The likelihood of sets of items against loops, for each kind of table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from adaptssr_jax.ops.item_softmax import (
  shard_softmax_losses_and_best,
  softmax_losses_and_best,
)
from adaptssr_jax.ops.sampled_softmax import distinct, sampled_softmax_losses

# 21 ids on 8 devices: 3 per device, with 3 padding rows in all.
ROWS, IDS, DIM, LABELS = 16, 21, 3, 4


@pytest.fixture(scope='module')
def scores():
  rng = np.random.default_rng(0)
  shapes = (ROWS, DIM), (IDS, DIM), (IDS,)
  hidden, table, bias = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes
  )
  labels = jnp.array([rng.permutation(IDS)[:LABELS] for _ in range(ROWS)])
  where = jnp.array(
    [np.arange(LABELS) < row % (LABELS + 1) for row in range(ROWS)]
  )
  # The first id is not a class, like padding.
  bias = bias.at[0].set(jnp.finfo(jnp.float32).min)
  where &= labels > 0
  return hidden, table, bias, labels, where


def by_loops(hidden, table, bias, labels, where):
  hidden, table, bias = (np.asarray(x, float) for x in (hidden, table, bias))
  losses = []
  for row in range(ROWS):
    z = table[1:] @ hidden[row] + bias[1:]
    wanted = [z[i - 1] for i in np.asarray(labels)[row][where[row]]]
    log_sum = np.log(np.sum(np.exp(z)))
    losses.append(np.mean([log_sum - own for own in wanted]) if wanted else 0)
  return losses


def losses_of(hidden, table, bias, labels, where, **settings):
  losses, _ = softmax_losses_and_best(
    hidden, table, bias, labels, where=where, **settings
  )
  return losses


@pytest.mark.parametrize('chunk_size', [None, 1, 4, 7, 100])
def test_is_the_mean_of_the_labels_losses(scores, chunk_size):
  found = jax.jit(functools.partial(losses_of, chunk_size=chunk_size))(*scores)
  np.testing.assert_allclose(found, by_loops(*scores), rtol=1e-5, atol=1e-5)
  assert not found[~scores[-1].any(axis=1)].any()


def test_gradients_in_chunks_are_those_of_the_whole(scores):
  *arrays, labels, where = scores

  def mean(hidden, table, bias, chunk_size=None):
    return jnp.mean(
      losses_of(hidden, table, bias, labels, where, chunk_size=chunk_size)
    )

  grad = jax.jit(
    jax.grad(mean, argnums=(0, 1, 2)), static_argnames='chunk_size'
  )
  expected, found = grad(*arrays), grad(*arrays, chunk_size=4)
  for ours, other in zip(found, expected, strict=True):
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, other, atol=1e-5 * np.abs(other).max())
  # An id that is not a class gets no gradient.
  assert not np.any(expected[1][0])
  with jax.enable_x64(True):
    arrays = [jnp.asarray(x, jnp.float64) for x in arrays[:2]]
    bias = jnp.zeros(IDS, jnp.float64)
    check_grads(jax.jit(functools.partial(mean, bias=bias)), arrays, order=1)


def test_a_sharded_table_gives_the_same(scores):
  hidden, table, bias, labels, where = scores
  shards = jnp.pad(table, ((0, 3), (0, 0))).reshape(8, 3, DIM)
  by_device = [
    x.reshape(8, ROWS // 8, *x.shape[1:]) for x in (hidden, labels, where)
  ]

  def on_device(shard, hidden, labels, where, chunk_size):
    losses, _ = shard_softmax_losses_and_best(
      hidden,
      shard,
      bias,
      labels,
      where=where,
      chunk_size=chunk_size,
      axis_name='devices',
    )
    return losses

  for chunk_size in (None, 2):
    step = functools.partial(on_device, chunk_size=chunk_size)
    found = jax.pmap(step, 'devices')(shards, *by_device).reshape(-1)
    np.testing.assert_allclose(found, by_loops(*scores), rtol=1e-5, atol=1e-5)


def test_many_samples_come_near_the_whole_softmax(scores):
  hidden, table, bias, labels, where = scores
  bias = bias.at[0].set(0)
  expected = jax.jit(losses_of)(hidden, table, bias, labels, where)
  sampled = functools.partial(
    sampled_softmax_losses,
    hidden=hidden,
    bias=bias,
    labels=labels,
    where=where,
  )
  ids = jax.random.randint(jax.random.key(0), (20_000,), 0, len(bias))
  compute = jax.jit(functools.partial(sampled, table=table))
  np.testing.assert_allclose(compute(ids), expected, rtol=0.05)
  few = compute(ids[:2])
  assert np.abs(few - expected).max() > 0.3
  look_up = jax.jit(functools.partial(sampled, table=lambda ids: table[ids]))
  np.testing.assert_array_equal(look_up(ids[:2]), few)


def test_distinct_marks_repeated_items_once():
  items = jnp.array([[3, 3, 5, 3, 0, 0], [0] * 6, [9, 8, 7, 9, 8, 7]])
  assert distinct(items).tolist() == [
    [True, False, True, False, False, False],
    [False] * 6,
    [True, True, True, False, False, False],
  ]


@pytest.mark.parametrize('is_sampled', [False, True])
def test_a_repeated_label_is_one_class_of_twice_the_weight(is_sampled):
  # Two ids with scores 0 and 2; two of the three labels are the second id.
  arrays = jnp.array([[1.0]]), jnp.array([[0.0], [2.0]]), jnp.zeros(2)
  labels = jnp.array([[1, 0, 1, 0]])
  where = jnp.array([[True, True, True, False]])
  function = losses_of
  if is_sampled:
    # All samples are labels, so that the sum is over these two for any sample.
    function = functools.partial(sampled_softmax_losses, jnp.array([0, 1, 1]))
  found = jax.jit(function)(*arrays, labels, where=where)
  expected = np.log(1 + np.exp(2)) - (2 * 2 + 0) / 3
  np.testing.assert_allclose(found, expected, rtol=1e-6)
