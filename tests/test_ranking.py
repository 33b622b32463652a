"""Rankings: drawn negatives, scored targets, ranks of positives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.objectives.ranking import (
  draw_negatives,
  ranking_objective,
  ranks_of_positives,
  softmax_ranking_objective,
)
from adaptssr_jax.objectives.target_scores import (
  log_sum_of_others,
  some_scores,
  target_ranks,
  target_scores,
)
from adaptssr_jax.objectives.users import Encoding, user_keys
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import pmap_step


class Mean(UserEncoder):
  """Of a user's items: what a ranking asks of an encoder, soon compiled."""

  def __call__(self, items, *, embedded=None, **_):
    hidden = self.item_embedding[items] if embedded is None else embedded
    hidden = jnp.tanh(hidden + self.position_embedding[None])
    return jnp.mean(hidden, axis=1, where=(items != 0)[..., None])


ENCODER = Mean(num_items=9, max_length=4, embed_dim=4, dropout_rate=0.0)
HEAD = TaskHead(num_outputs=13)
draw = functools.partial(draw_negatives, num_targets=13)
draw_many = jax.jit(functools.partial(draw, num_draws=6000))


@functools.cache
def params():
  items = jnp.ones((1, 4), jnp.int32)
  encoder = ENCODER.init(jax.random.key(0), items)['params']
  # Large embeddings and biases, so that users and targets differ.
  encoder = jax.tree.map(lambda leaf: 50 * leaf, encoder)
  head = HEAD.init(jax.random.key(1), jnp.ones((1, 4)))['params']
  head['output']['bias'] = jnp.linspace(-1, 1, 13) ** 3
  return model_params(encoder) | {'head': head}


ENCODING = Encoding(ENCODER)
RANK = functools.partial(ranks_of_positives, encoding=ENCODING, head=HEAD)
OBJECTIVE = functools.partial(ranking_objective, encoding=ENCODING, head=HEAD)
SOFTMAX = functools.partial(
  softmax_ranking_objective, encoding=ENCODING, head=HEAD
)
# Each is compiled once, for the batches of all tests.
rank = jax.jit(RANK)
loss_and_gradient = {
  objective: jax.jit(jax.value_and_grad(objective, has_aux=True))
  for objective in (OBJECTIVE, SOFTMAX)
}


@jax.jit
def encode(params, items):
  return ENCODER.apply({'params': encoder_params(params)}, items)


def made_batch(rows=16):
  rng = np.random.default_rng(0)
  targets = np.full((rows, 4), -1, np.int32)
  positives = np.full((rows, 2), -1, np.int32)
  for row in range(rows):
    count = rng.integers(1, 5)
    targets[row, :count] = rng.permutation(13)[:count]
    # Some or all of them, in another order, as those of one split are.
    some = rng.permutation(targets[row, :count])[: rng.integers(1, 3)]
    positives[row, : len(some)] = some
  batch = {
    'items': rng.integers(1, 10, (rows, 4), dtype=np.int32),
    'positives': positives,
    'targets': targets,
    'where': np.arange(rows) < rows - 1,
    'example_id': np.arange(rows, dtype=np.int32) + 100,
  }
  return jax.tree.map(jnp.asarray, batch)


def training_batch():
  """Of users one of whom has all targets, and so no negative."""
  batch = jax.tree.map(np.array, made_batch())
  targets = np.full((16, 13), -1, np.int32)
  targets[:, :4] = batch['targets']
  targets[2] = np.arange(13)
  return jax.tree.map(jnp.asarray, batch | {'targets': targets})


@pytest.mark.parametrize(
  'targets',
  [[3, 0, 12, 7], [5, -1, -1, -1], [0, 1, 2, -1], [4, 9, 4, 9], [12, 11, 3, 3]],
)
def test_negatives_are_uniform_over_the_rest(targets):
  found = draw_many(jax.random.key(0), jnp.array(targets))
  counts = np.bincount(found, minlength=13)
  rest = sorted(set(range(13)) - set(targets))
  assert counts.sum() == counts[rest].sum() == 6000
  expected = 6000 / len(rest)
  chi_square = ((counts[rest] - expected) ** 2 / expected).sum()
  # 33 is exceeded once in a thousand by chi-square with 12 degrees.
  assert chi_square < 33


def test_a_user_of_all_targets_has_no_negative():
  everything = jnp.arange(13)[::-1]
  key = jax.random.key(0)
  assert set(draw_many(key, everything).tolist()) == {13}
  # But for one target, there is just that.
  assert set(draw_many(key, everything[1:]).tolist()) == {12}


def test_negatives_of_a_user_are_drawn_one_by_one():
  key, targets = jax.random.key(0), jnp.array([3, 0, 12, -1])
  found = draw(key, targets, num_draws=6)
  np.testing.assert_array_equal(found[:2], draw(key, targets, num_draws=2))
  assert len(set(found.tolist())) > 1


def test_scores_of_some_targets_are_those_of_the_head():
  rng = np.random.default_rng(1)
  users = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
  some = jnp.asarray(rng.integers(13, size=(6, 3)))
  head = params()['head']
  weights = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)

  def by_gathering(head, users):
    scores = target_scores({'head': head}, users, HEAD)
    return (some_scores(scores, some) * weights).sum()

  def by_the_head(head, users):
    logits = HEAD.apply({'params': head}, users)
    scores = jnp.take_along_axis(logits, some, axis=1)
    return (scores * weights).sum()

  found, expected = (
    jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(head, users)
    for function in (by_gathering, by_the_head)
  )
  for leaf, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(leaf, other, atol=1e-6)


def ranks_by_loops(logits, batch):
  """The place of each positive; 0 where there is none."""
  ranks = np.zeros(batch['positives'].shape)
  for (row, slot), positive in np.ndenumerate(batch['positives']):
    if positive < 0:
      continue
    ranks[row, slot] = 1
    for target, score in enumerate(logits[row]):
      if target not in batch['targets'][row]:
        ranks[row, slot] += float(score > logits[row, positive])
        ranks[row, slot] += float(score == logits[row, positive]) / 2
  return ranks


@pytest.mark.parametrize('chunk_size', [1, 4, 6, 100])
@pytest.mark.parametrize('levels', [1, 2, 50])
def test_ranks_are_those_of_the_whole_catalogue(chunk_size, levels):
  rng = np.random.default_rng(2)
  # Whole numbers, so that ties are ties in every order of the sums.
  head = jax.tree.map(
    lambda leaf: jnp.asarray(rng.integers(levels, size=leaf.shape), float),
    params()['head'],
  )
  users = jnp.asarray(rng.integers(3, size=(16, 4)), jnp.float32)
  batch = made_batch()
  ranks = target_ranks(
    target_scores({'head': head}, users, HEAD),
    batch['positives'],
    batch['targets'],
    chunk_size=chunk_size,
  )
  logits = np.asarray(HEAD.apply({'params': head}, users))
  batch = jax.tree.map(np.asarray, batch)
  expected = ranks_by_loops(logits, batch)
  found = np.where(batch['positives'] >= 0, ranks, 0)
  np.testing.assert_array_equal(found, expected)
  assert len(np.unique(expected)) > 3


@pytest.mark.parametrize('chunk_size', [13, 40, 100])
def test_equal_targets_share_their_mean_place(chunk_size):
  rng = np.random.default_rng(4)
  head = {
    'hidden': {
      'kernel': rng.normal(size=(32, 64)),
      'bias': rng.normal(size=64),
    },
    'output': {
      'kernel': np.tile(rng.normal(size=(64, 19)), 5),
      'bias': np.tile(rng.normal(size=19), 5),
    },
  }
  head = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), head)
  users = jnp.asarray(rng.normal(size=(12, 32)), jnp.float32)
  positives = np.tile(np.arange(95, dtype=np.int32), (12, 1))[:, 10:90:3]
  # Nothing is left out, so that all five of a target are ranked.
  nothing = jnp.full((12, 1), -1)
  ranks = target_ranks(
    target_scores({'head': head}, users, TaskHead(num_outputs=95)),
    jnp.asarray(positives),
    nothing,
    chunk_size=chunk_size,
  )
  leaves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), head)
  hidden = np.asarray(users, np.float64) @ leaves['hidden']['kernel']
  hidden = np.maximum(hidden + leaves['hidden']['bias'], 0)
  scores = hidden @ leaves['output']['kernel'][:, :19]
  scores += leaves['output']['bias'][:19]
  for (row, slot), positive in np.ndenumerate(positives):
    above = (scores[row] > scores[row, positive % 19]).sum()
    # A positive that is not left out ties with itself.
    assert ranks[row, slot] == 1 + 5 * above + 5 / 2


def test_a_positive_without_a_score_has_no_place():
  batch = made_batch()
  head = jax.tree.map(jnp.copy, params()['head'])
  positive = batch['positives'][0, 0]
  head['output']['bias'] = head['output']['bias'].at[positive].set(jnp.nan)
  users = jnp.ones((16, 4))
  scores = target_scores({'head': head}, users, HEAD)
  ranks = target_ranks(scores, batch['positives'], batch['targets'])
  broken = batch['positives'] == positive
  assert 0 < broken.sum() < broken.size
  np.testing.assert_array_equal(jnp.isnan(ranks), broken)


def test_ranks_of_a_user_are_those_of_its_rows():
  batch = made_batch()
  positives = np.asarray(batch['positives'])
  ranks = np.asarray(rank(params(), batch))
  for slot in range(2):
    own = np.where(np.arange(2) == slot, positives, -1)
    exists = positives[:, slot] >= 0
    found = np.asarray(rank(params(), batch | {'positives': jnp.asarray(own)}))
    np.testing.assert_array_equal(ranks[exists, slot], found[exists, slot])
    assert exists.sum() > 3


def split_over_devices(batch):
  return jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)


def test_eight_devices_rank_as_one():
  batch = made_batch()
  encoding = Encoding(ENCODER, axis_name=AXIS)
  rank_on_each = pmap_step(functools.partial(RANK, encoding=encoding))
  found = rank_on_each(params(), split_over_devices(batch))
  expected = rank(params(), batch)
  np.testing.assert_array_equal(found, expected)
  users = encode(params(), batch['items'])
  logits = HEAD.apply({'params': params()['head']}, users)
  batch = jax.tree.map(np.asarray, batch)
  by_loops = ranks_by_loops(np.asarray(logits), batch)
  expected = np.where(batch['positives'] >= 0, expected, 0)
  np.testing.assert_array_equal(expected, by_loops)


def test_the_objective_is_bpr_of_each_positive_and_its_negative():
  batch, key = training_batch(), jax.random.key(3)
  (loss, metrics), _ = loss_and_gradient[OBJECTIVE](params(), batch, key)
  users = encode(params(), batch['items'])
  logits = np.asarray(HEAD.apply({'params': params()['head']}, users))
  total, count = 0.0, 0
  keys = user_keys(key, batch['example_id'])
  # Neither the last user, who is padding, nor padding slots.
  for row in set(range(15)) - {2}:
    # The first half of a user's key is for dropout.
    own = jax.random.split(keys[row])[1]
    negatives = draw(own, batch['targets'][row], num_draws=2).tolist()
    for positive, negative in zip(
      batch['positives'][row].tolist(), negatives, strict=True
    ):
      if positive >= 0:
        assert negative not in batch['targets'][row].tolist()
        margin = logits[row, positive] - logits[row, negative]
        total += np.log1p(np.exp(-margin))
        count += 1
  assert 14 < count < 28
  np.testing.assert_allclose(loss, total / count, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], (total, count), rtol=1e-5)


def mean_grads(params, batch, *, key, objective):
  """Loss, metrics and gradient of the batch of all devices."""
  found = jax.value_and_grad(
    functools.partial(objective, encoding=Encoding(ENCODER, axis_name=AXIS)),
    has_aux=True,
  )(params, batch, key)
  (loss, metrics), grads = found
  return loss, jax.lax.psum(metrics, AXIS), jax.lax.pmean(grads, AXIS)


@pytest.mark.parametrize(
  'objective', [OBJECTIVE, SOFTMAX], ids=['bpr', 'softmax']
)
def test_eight_devices_learn_as_one(objective):
  # Users have no, one or two positives that count, so that devices differ.
  batch, key = training_batch(), jax.random.key(3)
  step = pmap_step(functools.partial(mean_grads, key=key, objective=objective))
  found = step(params(), split_over_devices(batch))
  (loss, metrics), grads = loss_and_gradient[objective](params(), batch, key)
  assert_close = functools.partial(
    np.testing.assert_allclose, rtol=1e-4, atol=1e-6
  )
  jax.tree.map(assert_close, found, (loss, metrics, grads))


def test_who_has_no_negative_has_no_gradient():
  batch = training_batch() | {
    'where': jnp.asarray(np.full(16, True)),
    'targets': jnp.asarray(np.tile(np.arange(13, dtype=np.int32), (16, 1))),
  }
  (_, metrics), grads = loss_and_gradient[OBJECTIVE](
    params(), batch, jax.random.key(0)
  )
  assert metrics['loss'] == (0, 0)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def users_and_scores():
  batch = made_batch()
  users = encode(params(), batch['items'])
  return batch, target_scores(params(), users, HEAD)


@pytest.mark.parametrize('chunk_size', [None, 1, 4, 100])
def test_the_denominator_is_of_the_negatives_alone(chunk_size):
  batch, scores = users_and_scores()

  def total(bias):
    sums = log_sum_of_others(
      scores._replace(bias=bias), batch['targets'], chunk_size=chunk_size
    )
    return sums.sum(), sums

  (_, found), grads = jax.value_and_grad(total, has_aux=True)(scores.bias)
  logits = np.asarray(scores.hidden @ scores.kernel + scores.bias[None])
  shares = np.zeros(13)
  for row, targets in enumerate(np.asarray(batch['targets'])):
    rest = [target for target in range(13) if target not in targets]
    exponentials = np.exp(logits[row, rest])
    np.testing.assert_allclose(
      found[row], np.log(exponentials.sum()), rtol=1e-5
    )
    shares[rest] += exponentials / exponentials.sum()
  np.testing.assert_allclose(grads, shares, rtol=1e-4)


def test_the_softmax_leaves_out_the_users_other_positives():
  _, scores = users_and_scores()
  batch = training_batch()
  (loss, metrics), grads = loss_and_gradient[SOFTMAX](
    params(), batch, jax.random.key(0)
  )
  logits = np.asarray(scores.hidden @ scores.kernel + scores.bias[None])
  losses = []
  for row in set(range(15)) - {2}:
    targets = batch['targets'][row].tolist()
    for positive in batch['positives'][row].tolist():
      if positive >= 0:
        rest = [at for at in range(13) if at not in targets]
        among = np.exp(logits[row, [positive, *rest]])
        losses.append(-np.log(among[0] / among.sum()))
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
  expected = np.sum(losses), len(losses)
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
