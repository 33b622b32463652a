"""Diagnostics against plain loops, and with one or no unmasked user."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from adaptssr_jax import diagnostics
from adaptssr_jax.diagnostics import ViewSimilarities
from tests.reference import cosine

BATCH, DIM = 16, 5
# One of eight devices with two users each holds only masked users.
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], bool)
ALL = np.ones(BATCH, bool)
ONE = np.arange(BATCH) == 3
NONE = np.zeros(BATCH, bool)
OF_OTHERS = ('other', 'hardest', 'explicit_over_other')


@pytest.fixture(scope='module')
def users():
  rng = np.random.default_rng(0)
  person = rng.normal(size=(1, 1, BATCH, DIM))
  view = rng.normal(size=(2, 1, BATCH, DIM))
  passes = rng.normal(size=(2, 2, BATCH, DIM))
  return (person + view + 0.7 * passes).astype(np.float32)


similarities = jax.jit(diagnostics.view_similarities)
of_users = jax.jit(
  lambda users, where: {
    name: getattr(diagnostics, name)(users, where=where)
    for name in ('uniformity', 'mean_cosine', 'effective_rank')
  }
)


def slow_similarities(users, where, i):
  """All six similarities of one user, pair by pair."""
  found = ViewSimilarities(*([] for _ in ViewSimilarities._fields))
  for view in range(2):
    anchor = users[view, 0, i]
    implicit = cosine(anchor, users[view, 1, i])
    explicit = [cosine(anchor, users[1 - view, p, i]) for p in range(2)]
    other = [
      cosine(anchor, users[v, p, j])
      for j in range(users.shape[2])
      if j != i and where[j]
      for v in range(2)
      for p in range(2)
    ]
    found.implicit.append(implicit)
    found.explicit.extend(explicit)
    found.other.extend(other)
    found.hardest.append(max(other))
    found.implicit_over_explicit.extend(implicit > e for e in explicit)
    found.explicit_over_other.extend(e > o for e in explicit for o in other)
  return ViewSimilarities(*(np.mean(values) for values in found))


@pytest.mark.parametrize('where', [ALL, WHERE], ids=['all', 'where'])
def test_similarities_are_those_of_the_loops(users, where):
  found = similarities(users, where=where)
  shares = []
  for i in np.flatnonzero(where):
    expected = slow_similarities(users, where, i)
    for name, values in found._asdict().items():
      np.testing.assert_allclose(
        values[i], getattr(expected, name), atol=1e-6, err_msg=name
      )
    shares.append(expected[-2:])
  # The case is not trivial: rankings hold for some pairs only.
  assert np.all(np.std(shares, axis=0) > 0.05)
  for values in found:
    assert not np.any(values[~where])


def test_similarities_without_where_count_all(users):
  for found, expected in zip(
    diagnostics.view_similarities(users),
    similarities(users, where=ALL),
    strict=True,
  ):
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  ('where', 'anchors'), [(None, None), (WHERE, None), (WHERE, 1)]
)
def test_eight_devices_see_what_one_sees(users, where, anchors):
  split = PartitionSpec('users')
  mapped = jax.shard_map(
    lambda users, where: diagnostics.view_similarities(
      users, anchors=anchors, where=where, axis_name='users'
    ),
    mesh=Mesh(jax.devices()[:8], ('users',)),
    in_specs=(
      PartitionSpec(None, None, 'users'),
      PartitionSpec() if where is None else split,
    ),
    out_specs=split,
  )
  whole = similarities(users, where=where)
  for found, expected in zip(jax.jit(mapped)(users, where), whole, strict=True):
    # Each device has two users; anchors are the first ones.
    np.testing.assert_allclose(
      found, expected[:: 2 if anchors else 1], atol=1e-6
    )


def test_padding_is_neither_anchor_nor_other_user(users):
  garbage = users.copy()
  garbage[:, :, ~WHERE] = np.nan
  for found, expected in zip(
    similarities(garbage, where=WHERE),
    similarities(users, where=WHERE),
    strict=True,
  ):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('where', [None, WHERE], ids=['all', 'where'])
def test_anchors_are_the_first_and_are_ranked_among_all(users, where):
  whole = similarities(users, where=where)
  found = diagnostics.view_similarities(users, anchors=3, where=where)
  for values, expected in zip(found, whole, strict=True):
    assert values.shape == (3,)
    np.testing.assert_allclose(values, expected[:3], atol=1e-6)
  alone = similarities(users[:, :, :3], where=None)
  assert np.abs(found.other - alone.other).max() > 1e-2


def test_one_user_has_no_others(users):
  whole = similarities(users, where=ALL)
  for name, values in similarities(users, where=ONE)._asdict().items():
    if name in OF_OTHERS:
      assert not np.any(values)
    else:
      np.testing.assert_allclose(values[3], getattr(whole, name)[3], atol=1e-6)
  for values in similarities(users, where=NONE):
    assert not np.any(values)


def test_one_point_ranks_nothing():
  users = np.broadcast_to(np.array([1, 0, 0, 0, 0], np.float32), (2, 2, 16, 5))
  found = similarities(users, where=ALL)
  for values in found[:4]:
    np.testing.assert_allclose(values, 1, atol=1e-6)
  assert not np.any(found.implicit_over_explicit)
  assert not np.any(found.explicit_over_other)


def slow_of_users(users):
  """By all pairs of different users; the rank by the other Gram matrix."""
  pairs = [
    (a, b) for i, a in enumerate(users) for j, b in enumerate(users) if i != j
  ]
  unit = [(u / np.linalg.norm(u)).astype(float) for u in users]
  gram = np.array([[a @ b for b in unit] for a in unit])
  values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
  shares = values[values > 1e-6] / values.sum()
  return {
    'uniformity': np.log(
      np.mean([np.exp(-2 * (2 - 2 * cosine(a, b))) for a, b in pairs])
    ),
    'mean_cosine': np.mean([cosine(a, b) for a, b in pairs]),
    'effective_rank': np.exp(-np.sum(shares * np.log(shares))),
  }


@pytest.mark.parametrize('where', [ALL, WHERE], ids=['all', 'where'])
def test_users_are_as_the_loops_say(users, where):
  garbage = np.where(where[:, None], users[0, 0], np.nan)
  found = of_users(garbage, where)
  for name, expected in slow_of_users(users[0, 0][where]).items():
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, err_msg=name)
  if where is ALL:
    for name, expected in found.items():
      without = getattr(diagnostics, name)(users[0, 0])
      np.testing.assert_allclose(without, expected, rtol=1e-5)


def test_uniformity_goes_block_by_block(monkeypatch, users):
  expected = diagnostics.uniformity(users[0, 0], where=WHERE)
  # Two full blocks and a smaller one.
  monkeypatch.setattr(diagnostics, '_BLOCK', 7)
  found = diagnostics.uniformity(users[0, 0], where=WHERE)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('where', [ONE, NONE], ids=['one', 'none'])
def test_users_without_others_have_defined_values(users, where):
  found = of_users(users[0, 0], where)
  assert found['uniformity'] == found['mean_cosine'] == 0
  np.testing.assert_allclose(found['effective_rank'], where.sum(), atol=1e-3)


def test_collapse_to_a_point_shows(users):
  point = np.broadcast_to(users[0, 0, :1], (BATCH, DIM))
  found = of_users(point * np.arange(1, BATCH + 1)[:, None], ALL)
  np.testing.assert_allclose(found['uniformity'], 0, atol=1e-5)
  np.testing.assert_allclose(found['mean_cosine'], 1, atol=1e-5)
  np.testing.assert_allclose(found['effective_rank'], 1, atol=1e-3)


def test_diagnostics_carry_no_gradient(users):
  gradient = jax.grad(
    lambda users: (
      sum(values.sum() for values in diagnostics.view_similarities(users))
      + diagnostics.uniformity(users[0, 0])
      + diagnostics.mean_cosine(users[0, 0])
      + diagnostics.effective_rank(users[0, 0])
    )
  )(users)
  assert not np.any(gradient)
