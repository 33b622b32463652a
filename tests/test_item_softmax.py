"""The softmax over all items, over chunks of them, and over a sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from adaptssr_jax.ops.item_softmax import softmax_losses_and_best
from adaptssr_jax.ops.sampled_softmax import sampled_softmax_losses

IDS = 11
# One id, a number that does not divide the number of ids, and more than all.
CHUNKS = (1, 4, 30)


def random_inputs(n=6, ids=IDS, dim=3, seed=0):
  rng = np.random.default_rng(seed)
  hidden, table = rng.normal(size=(n, dim)), rng.normal(size=(ids, dim))
  # The first and the last id are among the labels.
  labels = np.append(rng.integers(0, ids, n), [0, ids - 1])[-n:] if n else []
  return hidden, table, rng.normal(size=ids), np.array(labels, int)


def loop(hidden, table, bias, labels):
  """The oracle: losses and gradients of their weighted sum, row by row."""
  weights = np.arange(1.0, len(hidden) + 1)
  losses, best = [], []
  gradients = [np.zeros_like(x) for x in (hidden, table, bias)]
  for row, (h, label, weight) in enumerate(
    zip(hidden, labels, weights, strict=True)
  ):
    scores = [h @ e + b for e, b in zip(table, bias, strict=True)]
    losses.append(special.logsumexp(scores) - scores[label])
    best.append(np.argmax(scores))
    for item, share in enumerate(special.softmax(scores)):
      error = weight * (share - (item == label))
      gradients[0][row] += error * table[item]
      gradients[1][item] += error * h
      gradients[2][item] += error
  return losses, best, gradients


def compute(hidden, table, bias, labels, chunk_size=None):
  """The losses of one label for each row."""
  return softmax_losses_and_best(
    hidden,
    table,
    bias,
    labels[:, None],
    where=jnp.ones((len(labels), 1), bool),
    chunk_size=chunk_size,
  )


def weighted(hidden, table, bias, labels, chunk_size=None):
  losses, best = compute(hidden, table, bias, labels, chunk_size)
  return losses @ jnp.arange(1.0, len(losses) + 1), (losses, best)


in_chunks = functools.partial(compute, chunk_size=4)


def losses_of(*inputs):
  return in_chunks(*inputs)[0]


@functools.partial(jax.jit, static_argnums=4)
def compiled(*inputs):
  return jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)(*inputs)


@pytest.mark.parametrize('chunk_size', [None, *CHUNKS])
def test_values_and_gradients_are_those_of_a_loop(chunk_size):
  inputs = random_inputs()
  losses, best, gradients = loop(*inputs)
  with jax.enable_x64(True):
    (_, results), found = compiled(*map(jnp.asarray, inputs), chunk_size)
  np.testing.assert_allclose(results[0], losses, rtol=1e-12)
  np.testing.assert_array_equal(results[1], best)
  for gradient, expected in zip(found, gradients, strict=True):
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_float32_of_any_float():
  hidden, table, bias, labels = random_inputs()
  hidden, table = jnp.bfloat16(hidden), jnp.float32(table)
  losses, best = jax.jit(in_chunks)(
    hidden, table, jnp.float32(bias), jnp.int32(labels)
  )
  assert (losses.dtype, best.dtype) == (jnp.float32, jnp.int32)
  expected, *_ = loop(np.float64(hidden), np.float64(table), bias, labels)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_extreme_scores(chunk_size):
  # Scores are 1e4 times 0..10 down, and up.
  hidden = jnp.array([[-1e4], [1e4], [1e4]])
  table = jnp.arange(11.0)[:, None]
  labels = jnp.array([0, 10, 9])
  (_, results), gradients = compiled(
    hidden, table, jnp.zeros(11), labels, chunk_size
  )
  np.testing.assert_array_equal(results[0], [0, 0, 1e4])
  np.testing.assert_array_equal(results[1], [0, 10, 10])
  # Only the last row, of weight 3, is wrong: it predicts 10, its label is 9.
  np.testing.assert_array_equal(gradients[0], [[0], [0], [3]])
  np.testing.assert_array_equal(gradients[2], [0] * 9 + [-3, 3])


@pytest.mark.parametrize('chunk_size', [None, 1, 4])
def test_of_equal_scores_the_first_is_best(chunk_size):
  bias = jnp.array([0.0, 2.0, 2.0, 1.0, 0.0, 2.0])
  _, best = jax.jit(compute, static_argnums=4)(
    jnp.zeros((2, 1)), jnp.ones((6, 1)), bias, jnp.array([0, 5]), chunk_size
  )
  np.testing.assert_array_equal(best, [1, 1])


def test_an_item_that_is_never_right_may_have_a_bias_of_minus_infinity():
  hidden, table, bias, labels = random_inputs()
  bias[[3, 4, 5, 6, 7]] = -np.inf  # all of the second chunk, too
  labels[:] = [0, 1, 2, 8, 9, 10]
  inputs = [jnp.asarray(x, jnp.float32) for x in (hidden, table, bias)]
  (_, plain), expected = compiled(*inputs, jnp.asarray(labels), None)
  (_, chunked), gradients = compiled(*inputs, jnp.asarray(labels), 4)
  np.testing.assert_allclose(chunked[0], plain[0], rtol=1e-5)
  for gradient, other in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(gradient, other, atol=1e-5)


@pytest.mark.parametrize('chunk_size', [None, 4])
def test_no_rows_have_no_losses(chunk_size):
  inputs = [jnp.asarray(x, jnp.float32) for x in random_inputs(n=0)[:3]]
  (_, results), gradients = compiled(
    *inputs, jnp.zeros(0, jnp.int32), chunk_size
  )
  assert results[0].shape == results[1].shape == (0,)
  np.testing.assert_array_equal(gradients[1], np.zeros((IDS, 3)))


def test_vmap_is_a_loop():
  batches = [random_inputs(seed=seed) for seed in range(2)]
  stacked = [jnp.array(x) for x in zip(*batches, strict=True)]
  expected = [loop(*inputs)[0] for inputs in batches]
  mapped = jax.jit(jax.vmap(losses_of))(*stacked)
  np.testing.assert_allclose(mapped, expected, rtol=1e-5)


@pytest.mark.parametrize('check_vma', [True, False])
def test_devices_share_the_table_and_split_the_rows(check_vma):
  inputs = [jnp.asarray(x) for x in random_inputs(n=16)]
  rows, whole = jax.P('devices'), jax.P()
  mapped = jax.shard_map(
    losses_of,
    mesh=jax.make_mesh((8,), ('devices',), (jax.sharding.AxisType.Auto,)),
    in_specs=(rows, whole, whole, rows),
    out_specs=rows,
    check_vma=check_vma,
  )
  weights = jnp.arange(1.0, 17)
  gradient = jax.jit(
    jax.grad(lambda *x: mapped(*x, inputs[3]) @ weights, (0, 1, 2))
  )
  for found, expected in zip(
    gradient(*inputs[:3]), loop(*map(np.asarray, inputs))[2], strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('chunk_size', [0, -4])
def test_refuses_chunks_of_nothing(chunk_size):
  with pytest.raises(ValueError, match='chunk_size must be at least 1 or None'):
    compute(*map(jnp.asarray, random_inputs()), chunk_size=chunk_size)


# Sampled.


def sampled_losses(sampled, hidden, table, bias, labels):
  where = jnp.ones((len(labels), 1), bool)
  return sampled_softmax_losses(
    sampled, hidden, table, bias, labels[:, None], where=where
  )


def drawn(key, num_ids, num_sampled):
  return jax.random.randint(key, (num_sampled,), 0, num_ids)


def test_a_large_sample_has_the_loss_and_gradients_of_all():
  inputs = [jnp.asarray(x, jnp.float32) for x in random_inputs()[:3]]
  labels = jnp.asarray(random_inputs()[3])
  sampled = functools.partial(
    sampled_losses, drawn(jax.random.key(1), len(inputs[2]), 200_000)
  )

  def total(*inputs):
    losses = sampled(*inputs, labels)
    return losses @ jnp.arange(1.0, 7), losses

  gradient = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
  found_gradients, losses = gradient(*inputs)
  expected, _, gradients = loop(*map(np.float64, inputs), labels)
  np.testing.assert_allclose(losses, expected, atol=0.02)
  for found, other in zip(found_gradients, gradients, strict=True):
    np.testing.assert_allclose(found, other, atol=0.1)


def test_the_estimate_of_the_denominator_is_unbiased():
  inputs = [jnp.asarray(x, jnp.float32) for x in random_inputs()[:3]]
  labels = jnp.asarray(random_inputs()[3])
  keys = jax.random.split(jax.random.key(2), 4000)
  draw = functools.partial(drawn, num_ids=len(inputs[2]), num_sampled=3)
  draws = jax.jit(
    jax.vmap(lambda key: sampled_losses(draw(key), *inputs, labels))
  )(keys)
  # Z / e^z[label]: of the exact loss, and of each draw.
  ratios = np.exp(np.float64(draws))
  error = ratios.std(axis=0) / np.sqrt(len(keys))
  exact = np.exp(loop(*map(np.float64, inputs), labels)[0])
  assert np.all(np.abs(ratios.mean(axis=0) - exact) < 4 * error)
  # A sample that is the label adds 1 to the ratio unless it is removed, which
  # exceeds the error bound of some rows.
  assert np.min(4 * error) < 0.5


def test_the_label_counts_once():
  # With one id, all samples are the label and are removed: the loss is 0.
  table = jnp.full((1, 2), 3.0)
  gradient = jax.value_and_grad(
    lambda table: sampled_losses(
      jnp.zeros(5, jnp.int32),
      jnp.ones((4, 2)),
      table,
      jnp.zeros(1),
      jnp.zeros(4, jnp.int32),
    ).sum()
  )
  value, found = jax.jit(gradient)(table)
  assert value == 0
  np.testing.assert_array_equal(found, [[0, 0]])


def test_a_sample_of_extreme_scores_has_finite_gradients():
  hidden = jnp.array([[1e4], [-1e4]])
  gradient = jax.grad(
    lambda *x: sampled_losses(
      drawn(jax.random.key(0), 10, 30), *x, jnp.array([0, 9])
    ).sum(),
    (0, 1, 2),
  )
  found = jax.jit(gradient)(hidden, jnp.arange(10.0)[:, None], jnp.zeros(10))
  assert all(np.all(np.isfinite(leaf)) for leaf in found)
