"""The operations of a step, and the users that it is timed on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.model import UserEncoder
from experiments.benchmarking.work import (
  encoding_flops,
  scored_per_user,
  step_flops,
  synthetic_users,
)
from experiments.planning.counting import flops_of


@pytest.mark.parametrize('queries', [1, 3])
def test_operations_equal_those_of_the_traced_program(queries):
  encoder = UserEncoder(
    num_items=9, max_length=7, embed_dim=8, num_layers=2, num_queries=queries
  )
  items = jnp.ones((1, 7), jnp.int32)
  params = jax.eval_shape(encoder.init, jax.random.key(0), items)

  def encode(params):
    return encoder.apply(params, items, deterministic=True).sum()

  forward = flops_of(jax.make_jaxpr(encode)(params))
  assert forward == encoding_flops(np.array(7), encoder)
  both = flops_of(jax.make_jaxpr(jax.value_and_grad(encode))(params))
  assert both == 3 * forward


def test_operations_of_a_step_by_hand():
  encoder = UserEncoder(num_items=9, embed_dim=2, num_layers=1)
  # 1 item takes 24 * 4 + 4 * 2 + 4 * 2 = 112, 3 items take 288 + 72 + 24 = 384.
  mean = (112 + 384) / 2
  # 2 users of 4 sequences; 2 * 2 anchors against 8 vectors of 2 features.
  expected = 3 * 8 * mean + 2 * (4 * 8 * 2)
  assert step_flops(np.array([1, 3]), users=2, encoder=encoder) == expected


def test_synthetic_users():
  users = synthetic_users(2000, num_items=50, longest=100)
  lengths = users.items.lengths
  assert lengths.min() >= 10
  assert lengths.max() == 100
  assert 52 < lengths.mean() < 58
  counts = np.bincount(users.items.values, minlength=51)
  assert len(counts) == 50 + 1
  assert counts[0] == counts[50] == 0
  # Zipf's law: z = 1, which is item 2, is 2 ** 1.2 times as frequent as z = 2.
  assert counts[2] / counts[3] == pytest.approx(2**1.2, rel=0.1)
  again = synthetic_users(2000, num_items=50, longest=100)
  np.testing.assert_array_equal(users.items.values, again.items.values)


def test_operations_of_models_that_predict_replacements_are_unknown():
  for name in ('ecl', 'ccl_filled'):
    assert scored_per_user(name, np.array([3])) is None
