"""The softmax skips padding: equal at real positions, and cheaper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.ops.item_softmax import softmax_losses_and_best
from adaptssr_jax.ops.padded_softmax import (
  parts_at_once,
  real_softmax_losses_and_best,
)

ROWS, IDS, DIM = 11, 7, 3


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  shapes = (ROWS, DIM), (IDS, DIM), (IDS,)
  return [jnp.asarray(rng.normal(size=x), jnp.float32) for x in shapes]


LABELS = jnp.arange(ROWS)[:, None] % IDS
WHERE = jnp.arange(ROWS) % 3 == 1


def total(arrays, losses_of):
  losses, best = losses_of(*arrays, LABELS, where=WHERE[:, None])
  weight = jnp.where(WHERE, 1 + jnp.arange(ROWS), 0)
  return jnp.sum(jnp.where(WHERE, losses, 0) * weight), best


whole = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)


# Groups of one row, groups of which the last is not full, and one group of all;
# all ids at once, one id at a time, chunks that overlap, and a single chunk.
@pytest.mark.parametrize(
  ('chunk_size', 'size'),
  [(None, 1), (None, 4), (None, 100), (1, 2), (3, 4), (3, 100), (100, 4)],
)
def test_equals_the_softmax_of_all_rows(arrays, size, chunk_size):
  real = functools.partial(
    real_softmax_losses_and_best, size=size, chunk_size=chunk_size
  )
  (value, best), grads = whole(arrays, real)
  (expected, expected_best), expected_grads = whole(
    arrays, softmax_losses_and_best
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_array_equal(best[WHERE], expected_best[WHERE])
  for leaf, other in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5)


def test_groups_without_labels_are_not_scored(arrays):
  hidden, table, bias = arrays
  # The scores of these rows would be nan.
  hidden = jnp.where(WHERE[:, None], hidden, jnp.inf)
  where = WHERE[:, None]
  compute = jax.jit(functools.partial(real_softmax_losses_and_best, size=1))
  losses, _ = compute(hidden, table, bias, LABELS, where=where)
  expected, _ = jax.jit(softmax_losses_and_best)(*arrays, LABELS, where=where)
  np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_size_below_one_is_refused(arrays):
  with pytest.raises(ValueError, match='size must be at least 1, not 0'):
    real_softmax_losses_and_best(*arrays, LABELS, where=WHERE[:, None], size=0)


@pytest.mark.parametrize(
  ('ids', 'parts'),
  [(3707, (282, None)), (8192, (128, None)), (8193, (128, 2048))],
)
def test_a_group_has_a_million_scores_at_most(ids, parts):
  assert parts_at_once(ids) == parts
