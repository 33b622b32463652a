"""Objectives of slices and prefixes against loops over their formulas."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.adaptssr import rank_views
from adaptssr_jax.objectives.next_items import (
  next_items_objective,
  prefix_and_next,
)
from adaptssr_jax.objectives.pooled_items import init_projection, predict_views
from adaptssr_jax.objectives.users import Encoding, last_behaviours
from adaptssr_jax.objectives.views import (
  Views,
  encode_views,
  sum_objective,
  views_objective,
)
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.table.softmax import sample_items
from adaptssr_jax.training.devices import AXIS
from tests.bounds import assert_same_to_rounding
from tests.eight_devices import batch_of, on_eight_devices
from tests.random_params import random_params

# Histories of up to 12 behaviours, of which the encoder reads 5.
ITEMS, USERS, HISTORY, LENGTH = 35, 16, 12, 5
ENCODER = UserEncoder(ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1)
KEY = jax.random.key(3)
SLICE = functools.partial(augment.random_slice, lengths=(2, LENGTH))


@pytest.fixture(scope='module')
def batch():
  return batch_of(USERS, length=HISTORY, num_items=ITEMS)


@pytest.fixture(scope='module')
def params():
  encoder = random_params(ENCODER, jnp.ones((1, 1), int))
  bias = np.random.default_rng(1).normal(size=ITEMS + 1).astype(np.float32)
  return model_params(encoder) | {'head': {'bias': jnp.asarray(bias)}}


def slices(encoder=ENCODER, views=2, **settings):
  return functools.partial(
    encode_views,
    encoding=Encoding(encoder, **settings),
    augmentations=(SLICE,) * views,
    passes=1,
  )


def pooled_items(encode=None, axis_name=None, **settings):
  predict = functools.partial(predict_views, axis_name=axis_name)
  encode = encode or slices(**settings)
  return functools.partial(
    views_objective, losses={'pooled_items': predict}, encode=encode
  )


def next_items(**settings):
  return functools.partial(
    next_items_objective,
    encoding=Encoding(ENCODER, deterministic=True, **settings),
    num_next=3,
  )


@functools.cache
def value_and_grad(make):
  """One program for all tests that run it."""
  return jax.jit(jax.value_and_grad(make(), has_aux=True))


def likelihood(params, user, items):
  """-mean over the set of items of log softmax(E u + b), padding left out."""
  table = np.asarray(params['table'], float)[1:-1]
  z = table @ np.asarray(user, float) + np.asarray(params['head']['bias'])[1:]
  log_sum = np.log(np.exp(z).sum())
  return np.mean([log_sum - z[i - 1] for i in set(items)])


def real(row):
  return [int(item) for item in row if item]


def test_a_slice_predicts_the_items_of_the_next(params, batch):
  encode = slices(views=3, deterministic=True)

  @jax.jit
  def loss_and_views(params, batch):
    objective = pooled_items(encode)
    return objective(params, batch, KEY), encode(params, batch, KEY)

  (loss, metrics), seen = loss_and_views(params, batch)
  assert seen.items.shape == (3, USERS, LENGTH)
  expected = [
    likelihood(params, seen.users[view, 0, user], wanted)
    for view in range(3)
    for user in range(USERS - 1)
    if (wanted := real(seen.items[(view + 1) % 3, user]))
  ]
  # One user has no behaviours, and one is padding.
  assert len(expected) == 3 * (USERS - 2) == metrics['loss'][1]
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'][0], np.sum(expected), rtol=1e-5)


cut = functools.partial(prefix_and_next, max_length=LENGTH, num_next=3)
cut_by_keys = jax.jit(jax.vmap(cut, (0, None)))


def test_a_prefix_predicts_what_follows(params, batch):
  (loss, metrics), _ = value_and_grad(next_items)(params, batch, KEY)
  expected, encode = [], jax.jit(ENCODER.apply)
  for user in range(USERS - 1):
    keys = jax.random.split(jax.random.fold_in(KEY, user))
    found = cut_by_keys(keys, batch['items'][user])
    (prefix, _), (after, _) = map(np.asarray, found)
    if real(after):
      (vector,) = encode({'params': encoder_params(params)}, prefix[None])
      expected.append(likelihood(params, vector, real(after)))
  # Those of 0 and 1 behaviours have nothing that follows.
  assert len(expected) == USERS - 3 == metrics['loss'][1]
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize('n', [0, 1, 2, 7, HISTORY])
def test_prefixes_end_where_the_next_begin(n):
  history = np.where(np.arange(HISTORY) < n, np.arange(HISTORY) + 1, 0)
  found = cut_by_keys(jax.random.split(KEY, 40), history)
  cuts = set()
  for rows in zip(*map(np.asarray, found), strict=True):
    prefix, after = map(real, rows)
    run = prefix + after
    first = run[0] if run else 0
    assert run == list(range(first, first + len(run)))
    assert len(prefix) <= LENGTH
    assert (bool(prefix), bool(after)) == (n > 0, n > 1)
    cuts.add(prefix[-1] if prefix else 0)
  # Every place between two behaviours; of one, all of it.
  assert cuts == set(range(1, n)) | ({n} if n < 2 else set())


def test_an_encoder_reads_the_end_of_a_history(batch):
  for length in (1, LENGTH, HISTORY + 1):
    kept = np.asarray(last_behaviours(batch['items'], length=length))
    for row, history in zip(kept, np.asarray(batch['items']), strict=True):
      assert real(row) == real(history)[-length:]
      assert not row[len(real(row)) :].any()


@pytest.mark.parametrize('make', [pooled_items, next_items])
def test_eight_devices_and_a_split_table_change_nothing(params, batch, make):
  (expected, metrics), gradient = value_and_grad(make)(params, batch, KEY)
  loss, sums, grads = on_eight_devices(
    make(axis_name=AXIS),
    params,
    batch,
    KEY,
    mask_id=ENCODER.mask_id,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(sums['loss'][1], metrics['loss'][1])
  assert_same_to_rounding(grads['table'], gradient['table'])


def test_buckets_and_the_order_of_users_change_nothing(params, batch):
  run = value_and_grad(pooled_items)
  (whole, _), _ = run(params, batch, KEY)
  in_parts = jax.jit(pooled_items(buckets=Buckets((3,), 4)))
  np.testing.assert_allclose(in_parts(params, batch, KEY)[0], whole, rtol=1e-5)
  order = np.random.default_rng(2).permutation(USERS)
  permuted = {name: values[order] for name, values in batch.items()}
  (other, _), _ = run(params, permuted, KEY)
  np.testing.assert_allclose(other, whole, rtol=1e-5)


def test_sampled_items_come_near_all_of_them(params, batch):
  objective = jax.jit(pooled_items())
  (exact, _), _ = value_and_grad(pooled_items)(params, batch, KEY)
  sampled = sample_items(
    batch, KEY, num_sampled=20_000, num_ids=ENCODER.mask_id
  )
  many, _ = objective(params, sampled, KEY)
  # Padding may be sampled, and is no class.
  np.testing.assert_allclose(many, exact, rtol=0.05)
  # Of one item as often, which is known as well as if it were there once.
  one = batch | {'sampled': np.full(20_000, 7, np.int32)}
  few, _ = objective(params, one, KEY)
  assert abs(few - exact) > 0.05 * exact


def test_the_pooling_learns(params, batch):
  _, grads = value_and_grad(pooled_items)(params, batch, KEY)
  for leaf in (
    grads['encoder']['pooling']['query'],
    grads['table'],
    grads['head']['bias'],
  ):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 1e-4
  # Padding is no class.
  assert grads['head']['bias'][0] == 0


def test_a_wide_vector_starts_as_the_mean_of_its_parts(params, batch):
  encoder = ENCODER.clone(num_queries=2)
  query = params['encoder']['pooling']['query']
  wide = params['encoder'] | {'pooling': {'query': jnp.tile(query, (2, 1))}}
  head = params['head'] | init_projection(encoder)
  assert head['projection'].shape == (8, 4)
  (expected, _), _ = value_and_grad(pooled_items)(params, batch, KEY)
  # Two queries that are one, whose mean is that one.
  params = params | {'encoder': wide, 'head': head}
  loss, _ = jax.jit(pooled_items(encoder=encoder))(params, batch, KEY)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert init_projection(ENCODER) == {}


def test_two_objectives_of_the_same_views_are_their_weighted_sum(params, batch):
  losses = {'pooled_items': predict_views, 'adaptssr': rank_views}
  users = np.random.default_rng(3).normal(size=(2, 2, USERS, 4))
  views = Views(
    jnp.stack([batch['items'][:, :LENGTH], batch['items'][:, 1 : LENGTH + 1]]),
    jnp.asarray(users, jnp.float32),
  )
  weights = {'pooled_items': 2.0, 'adaptssr': 0.5}
  total, metrics = jax.jit(
    functools.partial(
      views_objective, losses=losses, weights=weights, encode=lambda *_: views
    )
  )(params, batch, KEY)
  pooled, _ = jax.jit(predict_views)(params, batch, views)
  ranked, _ = jax.jit(rank_views)(params, batch, views)
  np.testing.assert_allclose(total, 2 * pooled + 0.5 * ranked, rtol=1e-5)
  means = {name: float(s / n) for name, (s, n) in metrics.items()}
  np.testing.assert_allclose(means['loss'], total, rtol=1e-5)
  np.testing.assert_allclose(means['pooled_items_loss'], pooled, rtol=1e-5)
  np.testing.assert_allclose(means['adaptssr_loss'], ranked, rtol=1e-5)
  assert {'lambda', 'implicit', 'explicit'} <= set(means)


def test_objectives_that_share_nothing_draw_by_keys_of_their_own(params, batch):
  objectives = {'first': pooled_items(), 'second': pooled_items()}
  total, metrics = jax.jit(
    functools.partial(
      sum_objective, objectives=objectives, weights={'second': 3.0}
    )
  )(params, batch, KEY)
  keys = jax.random.split(KEY)
  one = value_and_grad(pooled_items)
  first, second = (one(params, batch, key)[0][0] for key in keys)
  assert first != second
  np.testing.assert_allclose(total, first + 3 * second, rtol=1e-5)
  chex.assert_trees_all_close(
    metrics['second_loss'][0] / metrics['second_loss'][1], second, rtol=1e-5
  )
