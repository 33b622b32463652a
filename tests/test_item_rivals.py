"""PTUM, MSDP and ECL against loops over their formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.ecl import (
  ecl_objective,
  init_discriminator,
  replaced_logits,
)
from adaptssr_jax.objectives.fill import fill_masked
from adaptssr_jax.objectives.msdp import (
  _regularizer,
  init_msdp,
  msdp_objective,
  prefix_and_window,
)
from adaptssr_jax.objectives.ptum import (
  cut_last,
  draw_negatives,
  mask_one,
  ptum_objective,
)
from adaptssr_jax.objectives.users import Encoding, user_keys
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.table.softmax import sample_items
from adaptssr_jax.training.devices import AXIS
from tests.bounds import assert_same_to_rounding
from tests.eight_devices import batch_of, on_eight_devices
from tests.random_params import random_params
from tests.reference import cosine

ITEMS, USERS, LENGTH, WINDOW = 35, 16, 6, 4
ENCODER = UserEncoder(ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1)
KEY = jax.random.key(3)
# Item i has i behaviours.
ENDS = np.cumsum(np.arange(ITEMS + 1)).astype(np.int32)


@pytest.fixture(scope='module')
def batch():
  # Few items, so that some are there twice.
  batch = batch_of(USERS, length=LENGTH, num_items=8)
  return draw_negatives(batch, KEY, ends=ENDS)


@pytest.fixture(scope='module')
def params():
  encoder = random_params(ENCODER, jnp.ones((1, 1), int))
  init = functools.partial(init_discriminator, ENCODER)
  head = jax.eval_shape(
    lambda key: init(key) | init_msdp(ENCODER, max_window=WINDOW), KEY
  )
  rng = np.random.default_rng(1)
  # So that what starts at zero matters too.
  head = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape), head)
  head['bias'] = rng.normal(0, 0.3, ITEMS + 1)
  head = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), head)
  return model_params(encoder) | {'head': head}


ENCODING = Encoding(ENCODER, deterministic=True)


def make(objective, axis_name=None, **settings):
  encoding = dataclasses.replace(ENCODING, axis_name=axis_name)
  return functools.partial(objective, encoding=encoding, **settings)


ptum = functools.partial(make, ptum_objective)
msdp = functools.partial(make, msdp_objective, max_window=WINDOW)
ecl = functools.partial(make, ecl_objective, temperature=0.5)


@functools.cache
def value_and_grad(make):
  """One program for all tests that run it."""
  return jax.jit(jax.value_and_grad(make(), has_aux=True))


def real(row):
  return [int(item) for item in row if item]


# One program of each, not one for each operation.
encode = jax.jit(ENCODER.apply, static_argnames='deterministic')
mask = functools.partial(mask_one, mask_id=ENCODER.mask_id)
mask_by_keys = jax.jit(jax.vmap(mask, (0, None)))
mask_some = jax.jit(
  functools.partial(augment.mask, ratio=0.3, mask_id=ENCODER.mask_id)
)
cut_two = jax.jit(functools.partial(cut_last, num_next=2))
cut = functools.partial(prefix_and_window, max_length=LENGTH, max_window=WINDOW)
cut_by_keys = jax.jit(jax.vmap(cut, (0, None)))


def encoded(params, items, keys=None):
  found = encode(
    {'params': encoder_params(params)},
    items,
    deterministic=keys is None,
    keys=keys,
  )
  return np.asarray(found, float)


def mean(pair):
  return float(pair[0] / pair[1])


def test_ptum_tells_true_behaviours_from_negatives(params, batch):
  # A negative that is the true item is no candidate, of any place.
  negatives = batch['negatives'].at[3:9, :, 1].set(batch['items'][3, 0])
  batch = batch | {'negatives': negatives}
  (loss, metrics), _ = value_and_grad(ptum)(params, batch, KEY)
  table = np.asarray(params['table'], float)
  # What the paper adds to all candidates of a place.
  places = np.random.default_rng(4).normal(size=(3, 4))
  masked, after, skipped = [], [], 0
  for user in range(USERS - 1):
    items = np.asarray(batch['items'])[user]
    keys = jax.random.split(jax.random.fold_in(KEY, user), 3)
    (seen, *_), (item, *_) = map(np.asarray, mask_by_keys(keys, items))
    kept, last = map(np.asarray, cut_two(items))
    vectors = encoded(params, np.stack([seen, kept]))
    for place, true in enumerate([item, *last]):
      if not true:
        continue
      others = [x for x in negatives[user, place].tolist() if x != true]
      skipped += 4 - len(others)
      rows = table[[int(true), *others]] + places[place]
      scores = rows @ vectors[min(place, 1)]
      found = np.log(np.exp(scores).sum()) - scores[0]
      (after if place else masked).append(found)
  # One user has no behaviours, one has one, one has two, one is padding.
  assert len(masked) == USERS - 3 == metrics['masked_loss'][1]
  assert len(after) == 2 * (USERS - 3) - 1 == metrics['next_loss'][1]
  assert skipped > 0
  expected = np.mean(masked) + np.mean(after)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(mean(metrics['loss']), expected, rtol=1e-5)
  assert 0 < mean(metrics['accuracy']) < 1


@pytest.mark.parametrize('n', [0, 1, 2, 3, 6])
def test_one_behaviour_is_masked_and_the_last_are_cut_off(n):
  items = np.where(np.arange(6) < n, np.arange(6) + 1, 0)
  rows, masked = map(np.asarray, mask_by_keys(jax.random.split(KEY, 40), items))
  is_masked = rows == ENCODER.mask_id
  restored = np.where(is_masked, masked[:, None], rows)
  np.testing.assert_array_equal(restored, np.tile(items, (40, 1)))
  np.testing.assert_array_equal(is_masked.sum(axis=1), n > 1)
  assert set(masked.tolist()) == (set(range(1, n + 1)) if n > 1 else {0})
  kept, last = cut_two(items)
  assert real(kept) + real(last) == list(range(1, n + 1))
  assert len(real(last)) == min(2, max(n - 1, 0))


def test_negatives_are_drawn_by_the_shares_of_items():
  many = {'example_id': jnp.arange(4000)}
  found = draw_negatives(many, KEY, ends=ENDS)['negatives']
  assert found.shape == (4000, 3, 4)
  counts = np.bincount(np.asarray(found).reshape(-1), minlength=ITEMS + 1)
  expected = counts.sum() * np.arange(ITEMS + 1) / ENDS[-1]
  assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected))
  # Whoever else is there.
  one = draw_negatives({'example_id': jnp.array([7])}, KEY, ends=ENDS)
  np.testing.assert_array_equal(one['negatives'][0], found[7])


predict_shares = jax.jit(msdp(regularizer=0.0))


def test_msdp_predicts_the_shares_of_items_in_a_window(params, batch):
  loss, metrics = predict_shares(params, batch, KEY)
  table = np.asarray(params['table'], float)[1:-1]
  head = jax.tree.map(np.asarray, params['head'])
  expected, repeated = [], 0
  for user in range(USERS - 1):
    keys = jax.random.split(jax.random.fold_in(KEY, user), 4)
    found = cut_by_keys(keys, batch['items'][user])
    (prefix, *_), (window, *_) = map(np.asarray, found)
    window = real(window)
    if window:
      vector = encoded(params, prefix[None])[0]
      vector += head['window_prompt'][int(np.log2(len(window)))]
      z = table @ vector + head['bias'][1:]
      shares = np.bincount(window, minlength=ITEMS + 1)[1:] / len(window)
      expected.append(np.log(np.exp(z).sum()) - shares @ z)
      repeated += len(set(window)) < len(window)
  assert repeated
  assert len(expected) == USERS - 3 == metrics['loss'][1]
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_the_regularizer_is_the_distance_of_a_masked_prefix(params, batch):
  predictor = np.asarray(params['head']['predictor'], float)
  distances = []
  # One user has no behaviours, and one is padding.
  for user in range(1, USERS - 1):
    keys = jax.random.split(jax.random.fold_in(KEY, user), 4)
    (prefix, *_), _ = cut_by_keys(keys, batch['items'][user])
    masked = mask_some(keys[3], prefix)
    first, second = encoded(params, jnp.stack([prefix, masked]))
    distances += [
      1 - cosine(first @ predictor, second),
      1 - cosine(second @ predictor, first),
    ]
  (loss, metrics), _ = value_and_grad(msdp)(params, batch, KEY)
  assert metrics['regularizer_loss'][1] == USERS - 2
  found = mean(metrics['regularizer_loss'])
  np.testing.assert_allclose(found, np.mean(distances), rtol=1e-4)
  # Its default weight is 0.1.
  plain, _ = predict_shares(params, batch, KEY)
  np.testing.assert_allclose(loss, plain + 0.1 * found, rtol=1e-5)


def test_the_vector_that_is_predicted_has_no_gradient():
  rng = np.random.default_rng(6)
  shapes = (4, 4), (5, 4), (5, 4)
  predictor, *pair = (jnp.asarray(rng.normal(size=x), 'f') for x in shapes)

  def loss(first, second):
    everyone = jnp.ones(5, bool)
    return _regularizer(
      predictor, first, second, where=everyone, axis_name=None
    )[0]

  def distance(mine, other):
    return (1 - optax.losses.cosine_similarity(mine @ predictor, other)).mean()

  for place, found in enumerate(jax.grad(loss, (0, 1))(*pair)):
    expected = jax.grad(distance)(pair[place], pair[1 - place]) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('n', [0, 1, 2, 6])
def test_windows_begin_at_the_cut_and_are_of_all_lengths(n):
  history = np.where(np.arange(6) < n, np.arange(6) + 1, 0)
  found = cut_by_keys(jax.random.split(KEY, 60), history)
  sizes = set()
  for rows in zip(*map(np.asarray, found), strict=True):
    prefix, window = map(real, rows)
    run = prefix + window
    assert run == list(range(1, len(run) + 1))
    sizes.add(len(window))
  assert sizes == (set(range(1, min(n, 5))) if n > 1 else {0})


def test_ecl_is_the_sum_of_its_parts(params, batch):
  objective = ecl(contrast=0.3, discriminator=0.7)
  loss, metrics = jax.jit(objective)(params, batch, KEY)
  keys = user_keys(KEY, batch['example_id'], num=4)
  fill = functools.partial(fill_masked, encoding=ENCODING, ratio=0.2)
  filled, masked = jax.jit(fill)(params, batch['items'], keys[:, 0])
  table = np.asarray(params['table'], float)[:-1]
  bias = np.asarray(params['head']['bias'], float)
  generator, detection, right = [], [], []
  first = encoded(params, batch['items'], keys[:, 1])
  detect = functools.partial(replaced_logits, encoding=ENCODING)
  logits = jax.jit(detect)(
    params, filled, jnp.asarray(first, jnp.float32), keys[:, 3]
  )
  for user in range(USERS - 1):
    for state, label in zip(
      masked.states[user], masked.labels[user], strict=True
    ):
      if label:
        z = table @ np.asarray(state, float) + bias
        generator.append(np.log(np.exp(z).sum()) - z[label])
    for item, now, logit in zip(
      batch['items'][user], filled[user], logits[user], strict=True
    ):
      if item:
        sign = 1 if item != now else -1
        detection.append(np.log1p(np.exp(-sign * float(logit))))
        right.append(sign * logit > 0)
  second = encoded(params, batch['items'], keys[:, 2])
  vectors = np.concatenate([first[: USERS - 1], second[: USERS - 1]])
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  vectors /= np.maximum(norms, 1e-12)
  scores = vectors @ vectors.T / 0.5
  np.fill_diagonal(scores, -np.inf)
  n = USERS - 1
  positives = scores[np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n)]
  contrast = np.mean(np.log(np.exp(scores).sum(axis=1)) - positives)
  found = {name: mean(pair) for name, pair in metrics.items()}
  for name, value in {
    'generator_loss': np.mean(generator),
    'contrast_loss': contrast,
    'discriminator_loss': np.mean(detection),
    'discriminator_accuracy': np.mean(right),
    'loss': np.mean(generator) + 0.3 * contrast + 0.7 * np.mean(detection),
  }.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
  np.testing.assert_allclose(loss, found['loss'], rtol=1e-5)


def test_the_discriminator_knows_the_user_and_the_other_items(params, batch):
  items, keys = batch['items'], user_keys(KEY, batch['example_id'])
  logits = jax.jit(
    lambda items, users, encoding=ENCODING: replaced_logits(
      params, items, users, keys, encoding=encoding
    ),
    static_argnames='encoding',
  )
  users = jnp.asarray(np.random.default_rng(5).normal(size=(USERS, 4)), 'f')
  found = logits(items, users)
  in_buckets = dataclasses.replace(ENCODING, buckets=Buckets((3,), 4))
  cut = logits(items, users, encoding=in_buckets)
  inside = np.asarray(items != 0)
  np.testing.assert_allclose(cut[inside], found[inside], rtol=1e-4, atol=1e-5)
  assert np.all(np.abs(logits(items, users[::-1]) - found)[inside] > 1e-6)
  other = logits(items.at[:, 0].set(30), users) - found
  assert np.abs(other[5:, 1]).min() > 1e-6


def with_sampled(batch, make):
  """The batch; of ECL with items without which it needs the whole table."""
  if make is not ecl:
    return batch
  return sample_items(batch, KEY, num_sampled=20, num_ids=ENCODER.mask_id)


@pytest.mark.parametrize('make', [ptum, msdp, ecl])
def test_padding_users_change_nothing(params, batch, make):
  batch, run = with_sampled(batch, make), value_and_grad(make)
  (loss, _), grads = run(params, batch, KEY)
  items = batch['items'].at[-1].set(batch['items'][4])
  (other, _), _ = run(params, batch | {'items': items}, KEY)
  np.testing.assert_allclose(other, loss, rtol=1e-6)
  nobody = batch | {'where': jnp.zeros(USERS, bool)}
  (none, _), of_none = run(params, nobody, KEY)
  assert none == 0
  for leaf in jax.tree.leaves((grads, of_none)):
    assert np.isfinite(leaf).all()
  assert np.abs(grads['encoder']['pooling']['query']).max() > 1e-5
  assert np.abs(grads['table']).max() > 1e-4


@pytest.mark.parametrize('make', [ptum, msdp, ecl])
def test_eight_devices_and_a_split_table_change_nothing(params, batch, make):
  batch = with_sampled(batch, make)
  (expected, metrics), gradient = value_and_grad(make)(params, batch, KEY)
  sampled = {name: batch[name] for name in ('sampled',) if name in batch}
  users = {name: x for name, x in batch.items() if name not in sampled}
  loss, sums, grads = on_eight_devices(
    make(axis_name=AXIS),
    params,
    users,
    KEY,
    mask_id=ENCODER.mask_id,
    shared=sampled,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(sums['loss'][1], metrics['loss'][1])
  # That of the bias of the keys is 0: what is left is rounding of terms of 1.
  assert_same_to_rounding(grads, gradient, share=2e-5, least=0.03)
