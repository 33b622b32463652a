"""The published contrastive methods as objectives of pre-training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.losses import coles_loss, nt_xent_loss
from adaptssr_jax.objectives.contrast import (
  contrast_views,
  curriculum_strength,
  encode_curriculum,
  query_overlap,
)
from adaptssr_jax.objectives.views import (
  Views,
  encode_views,
  views_objective,
)
from adaptssr_jax.table.lookup import model_params, with_batch_rows
from adaptssr_jax.table.shards import combine, partition
from adaptssr_jax.training.devices import AXIS, shard
from adaptssr_jax.training.step import init_state, pmap_step, train_step
from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.pretraining import with_defaults
from experiments.pretraining.context import view_augmentations
from experiments.pretraining.step import (
  encoded_lengths,
  encoded_of_a_user,
)
from tests.tiny_runs import lines, pretrain_settings, saved_state

METHODS = ('clue', 'cl4srec', 'idicl', 'ccl', 'coles')
ITEMS, USERS, LENGTH = 35, 16, 5
ENCODER = UserEncoder(
  ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1, num_queries=2
)
KEY = jax.random.key(3)
CROP = functools.partial(augment.crop, ratio=0.5)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  lengths = np.array([0, 1, 2, *rng.integers(3, LENGTH + 1, USERS - 3)])
  items = rng.integers(1, ITEMS + 1, (USERS, LENGTH)).astype(np.int32)
  return {
    'items': jnp.where(np.arange(LENGTH) < lengths[:, None], items, 0),
    'where': jnp.arange(USERS) < USERS - 1,
    'example_id': jnp.arange(USERS),
  }


@pytest.fixture(scope='module')
def params():
  init = jax.jit(ENCODER.init)(jax.random.key(0), jnp.ones((1, 1), int))
  return model_params(jax.tree.map(lambda x: 20 * x, init['params']))


def objective(axis_name=None, loss=nt_xent_loss):
  """Two views, of two passes each, and the penalty of the queries."""
  contrast = functools.partial(contrast_views, loss=loss, axis_name=axis_name)
  return functools.partial(
    views_objective,
    losses={'contrast': contrast, 'overlap': query_overlap},
    encode=functools.partial(
      encode_views,
      encoder=ENCODER,
      augmentations=augment.two_of(CROP, functools.partial(CROP, ratio=1)),
    ),
  )


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_all_views_and_passes_of_a_user_are_alike(params, batch):
  users = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
  where = jnp.array([True, True, True, False])
  loss, metrics = jax.jit(contrast_views)(
    {}, {'where': where}, Views(jnp.zeros((2, 4, 1), int), jnp.array(users))
  )
  users = users.reshape(6, 4, 5)[:, :3].astype(float)
  expected = jax.jit(nt_xent_loss)(jnp.array(users, jnp.float32))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  means = {name: float(total / n) for name, (total, n) in metrics.items()}
  own, others = [], []
  for a in range(18):
    for b in range(18):
      pair = cosine(users[a // 3, a % 3], users[b // 3, b % 3])
      if a % 3 != b % 3:
        others.append(pair)
      elif a != b:
        own.append(pair)
  np.testing.assert_allclose(means['explicit'], np.mean(own), rtol=1e-4)
  np.testing.assert_allclose(means['other'], np.mean(others), atol=1e-6)
  np.testing.assert_allclose(means['loss'], loss, rtol=1e-6)
  assert {'hardest', 'explicit_over_other', 'alignment'} < set(metrics)


def test_overlap_is_the_cosines_of_different_queries():
  where = {'where': jnp.array([True, False])}

  @jax.jit
  @jax.value_and_grad
  def overlap(queries):
    params = {'encoder': {'pooling': {'query': queries}}}
    nothing = Views(jnp.zeros((1, 2, 1), int), jnp.zeros((1, 2, 2, 1)))
    return query_overlap(params, where, nothing)[0]

  queries = jnp.array([[2.0, 0.0], [0.0, 5.0], [3.0, 4.0]])
  # Cosines of .6 and .8, each of two ordered pairs.
  np.testing.assert_allclose(overlap(queries)[0], 2**0.5, rtol=1e-6)
  for alone in (queries[:1], queries[:2]):
    value, gradient = overlap(alone)
    assert value == 0
    assert np.isfinite(gradient).all()


def test_a_curriculum_has_twenty_levels():
  strength = jax.jit(jax.vmap(lambda step: curriculum_strength(step, 100)))
  steps = np.arange(120)
  expected = np.minimum(0.015 * (steps // 5 + 1), 0.3) / 0.3
  np.testing.assert_allclose(strength(steps), expected, rtol=1e-6)
  # Fewer steps than levels.
  few = [float(curriculum_strength(jnp.array(step), 3)) for step in range(4)]
  np.testing.assert_allclose(few, [0.05, 0.35, 0.7, 1.0], rtol=1e-6)


def test_augmentations_grow_with_the_step(params, batch):
  settings = pretrain_settings('', '', mask_ratio=0.8, crop_ratio=0.2)
  items = jnp.tile(jnp.arange(1, 6), (USERS, 1))
  batch = batch | {'items': items}

  @functools.partial(jax.jit, static_argnums=0)
  def encode(name, steps):
    views = encode_curriculum(
      params,
      batch | steps,
      KEY,
      encoder=ENCODER,
      augmentations_at=functools.partial(
        view_augmentations, settings, ENCODER, (name,), has_second=True
      ),
      num_steps=40,
      passes=1,
      deterministic=True,
    )
    return views.items

  def views(name, step=None):
    return encode(name, {} if step is None else {'step': jnp.array(step)})

  edited = {
    'mask': lambda items: (items == ENCODER.mask_id).sum(-1),
    'crop': lambda items: (items == 0).sum(-1),
  }
  for name, count in edited.items():
    found = [count(views(name, step)) for step in (0, 20, 39, 400)]
    # Of five items, by strengths of 0.05, 0.55, 1 and 1: of mask at most the
    # ceiling, of crop the floor.
    wanted = [1, 3, 4, 4] if name == 'mask' else [0, 2, 4, 4]
    for counts, value in zip(found, wanted, strict=True):
      np.testing.assert_array_equal(counts, value)
    np.testing.assert_array_equal(views(name, 400), views(name))


@pytest.mark.parametrize('loss', [nt_xent_loss, coles_loss])
def test_eight_devices_and_a_split_table_change_nothing(params, batch, loss):
  split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)

  whole = jax.jit(jax.value_and_grad(objective(loss=loss), has_aux=True))
  (expected, _), gradient = whole(params, batch, KEY)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert np.abs(gradient['encoder']['pooling']['query']).max() > 1e-4
  function = with_batch_rows(
    objective(AXIS, loss),
    mask_id=ENCODER.mask_id,
    size=2 * LENGTH + 2,
    axis_name=AXIS,
  )

  def on_devices(params, batch, key):
    value_and_grad = jax.value_and_grad(function, has_aux=True)
    (loss, _), grads = value_and_grad(params, batch, key)
    shards, whole = partition(grads)
    return loss, combine(shards, jax.lax.pmean(whole, AXIS))

  wanted = np.asarray(gradient['table'])
  step = pmap_step(on_devices, num_replicated_args=1)
  start = params | {'table': shard(params['table'])}
  found, grads = step(start, split, KEY)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Each device has the sum over all of them.
  table = grads['table'].rows.reshape(-1, 4)[: len(wanted)] / 8
  np.testing.assert_allclose(table, wanted, atol=1e-5 * np.abs(wanted).max())


def test_padding_users_change_nothing(params, batch):
  garbage = batch | {'items': batch['items'].at[-1].set(7)}
  losses = [jax.jit(objective())(params, b, KEY)[0] for b in (batch, garbage)]
  np.testing.assert_array_equal(*losses)


def test_a_loss_is_told_the_step():
  def loss_fn(params, batch, key):
    loss = params['w'] * batch['step']
    return loss, {'loss': (loss, jnp.float32(1))}

  state = init_state({'w': jnp.float32(1)}, optax.sgd(1.0))
  for _ in range(3):
    state, _ = train_step(
      state, {}, KEY, loss_fn=loss_fn, optimizer=optax.sgd(1.0)
    )
  assert float(state.params['w']) == 1 - (0 + 1 + 2)


@pytest.mark.parametrize('name', METHODS)
def test_each_method_learns(tmp_path, data_dir, name):
  changes = {
    'coles': {'num_slices': 5, 'slice_lengths': ('2', '4')},
    # As published.
    'cl4srec': {'crop_ratio': 0.6, 'mask_ratio': 0.3},
    'ccl': {'table_update': 'rows', 'curriculum_steps': 1},
  }
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    objective=(name,),
    num_steps=9,
    learning_rate=0.03,
    **changes.get(name, {}),
  )
  pretrain.main(settings)
  found = [
    line['validation_loss']
    for line in lines(tmp_path)
    if 'validation_loss' in line
  ]
  assert len(found) == 3
  assert found[-1] < found[0]
  values = [v for line in lines(tmp_path) for v in line.values()]
  assert np.isfinite(values).all()
  params = saved_state(tmp_path)['params']
  assert set(params) == {'table', 'encoder'}
  queries = 4 if name == 'idicl' else 1
  assert params['encoder']['pooling']['query'].shape == (queries, 8)


@pytest.mark.parametrize(
  'changes',
  [
    # Nothing in common: each sees what it needs.
    {
      'objective': ('pooled_items', 'ccl'),
      'slice_lengths': ('2', '4'),
      'shard_table': True,
    },
    {
      'objective': ('ccl', 'coserec', 'duorec'),
      'augmentations': ('slice', 'mask'),
    },
  ],
  ids=str,
)
def test_methods_go_with_others(tmp_path, data_dir, changes):
  settings = pretrain_settings(tmp_path, data_dir, num_steps=2, **changes)
  pretrain.main(settings)
  values = [v for line in lines(tmp_path) for v in line.values()]
  assert np.isfinite(values).all()
  first = lines(tmp_path)[0]
  parts = [first[f'{name}_loss'] for name in settings.objective]
  np.testing.assert_allclose(first['loss'], sum(parts), rtol=1e-5)


def test_idicl_needs_interests(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path, data_dir, objective=('idicl',), num_queries=1
  )
  with pytest.raises(SettingsError, match='--objective=idicl needs several'):
    pretrain.main(settings)
  # What a checkpoint has is not contradicted.
  started = with_defaults(
    pretrain_settings('', '', objective=('idicl',), init_from='elsewhere')
  )
  assert started.num_queries is None


def test_what_is_encoded_of_a_user():
  counts = {'clue': 2, 'cl4srec': 2, 'idicl': 2, 'ccl': 2, 'coles': 2}
  for name, count in counts.items():
    settings = pretrain_settings('', '', objective=(name,))
    assert encoded_of_a_user(settings) == count
    lengths = encoded_lengths(settings, np.array([10]), max_length=10)
    # A crop keeps 0.4.
    wanted = {4, 10} if name in ('cl4srec', 'ccl') else {10}
    assert set(lengths) == wanted
