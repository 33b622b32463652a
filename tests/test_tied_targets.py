"""Targets that are items, scored by the item table."""

import jax
import jax.numpy as jnp
import numpy as np

from adaptssr_jax.encoder.transfer import TiedTargets, biases_of_targets
from adaptssr_jax.objectives.target_scores import (
  some_scores,
  target_ranks,
  target_scores,
)

# Targets are item 3, not an item, item 1, not an item.
HEAD = TiedTargets(np.array([3, 0, 1, 0], np.int32))
TABLE = jnp.arange(10.0).reshape(5, 2)
OWN = jnp.array([[50.0, 60.0], [70.0, 80.0]])


def params_of(head, features=2, bias=None):
  return head.init(jax.random.key(0), features=features, embed_dim=2, bias=bias)


def test_a_target_has_the_row_of_its_item_or_its_own():
  rows = HEAD.rows(TABLE[HEAD.items], {'rows': OWN})
  assert rows.tolist() == [[6, 7], [50, 60], [2, 3], [70, 80]]
  # Both get gradients; in the table, only the rows of items that are targets.
  table, own = jax.grad(
    lambda table, own: HEAD.rows(table[HEAD.items], {'rows': own}).sum(),
    argnums=(0, 1),
  )(TABLE, OWN)
  assert table[:, 0].tolist() == [0, 1, 0, 1, 0]
  assert own.tolist() == [[1, 1], [1, 1]]


def test_where_all_targets_are_items_there_are_no_other_rows():
  head = TiedTargets(np.array([2, 1], np.int32))
  params = params_of(head)
  assert set(params) == {'projection', 'bias'}
  assert head.rows(TABLE[head.items], params).tolist() == [[4, 5], [2, 3]]


def test_at_the_start_a_vector_scores_items_as_in_pretraining():
  users = jnp.array([[1.0, 2.0], [0.0, -1.0]])
  bias = np.array([0.5, 0.0, -1.0, 0.0])
  params = params_of(HEAD, bias=bias) | {'rows': OWN}
  model = {'table': TABLE, 'head': params}
  scores = target_scores(model, users, HEAD)
  found = some_scores(scores, jnp.array([[0, 2], [1, 3]]))
  # E[3] = (6, 7) and E[1] = (2, 3): 6 + 2 * 7 + .5, 2 + 2 * 3 - 1.
  assert found.tolist() == [[20.5, 7.0], [-60.0, -80.0]]
  nothing = jnp.full((2, 1), -1)
  ranks = target_ranks(scores, jnp.array([[0, 2], [0, 2]]), nothing)
  # 20.5, 170, 7, 230; -6.5, -60, -4, -80, each tied with itself.
  assert ranks.tolist() == [[3.5, 4.5], [2.5, 1.5]]


def test_two_parts_of_a_vector_are_averaged():
  params = params_of(HEAD, features=4)
  users = jnp.array([[1.0, 2.0, 5.0, 10.0]])
  assert (users @ params['projection']).tolist() == [[3, 6]]


def test_the_bias_of_what_is_new_is_the_least():
  bias = np.array([9.0, -3.0, -7.0, -5.0])
  found = biases_of_targets(bias, ['c', 'new', 'a'], ['a', 'b', 'c'])
  assert found.tolist() == [-5, -7, -3]
