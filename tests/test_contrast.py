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
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.objectives.views import Views, encode_views, views_objective
from adaptssr_jax.table.lookup import model_params
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import init_state, train_step
from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.pretraining import with_defaults
from experiments.pretraining.context import Context, view_augmentations
from experiments.pretraining.step import encoded_lengths, sequences_per_user
from tests.bounds import assert_same_to_rounding
from tests.eight_devices import batch_of, on_eight_devices
from tests.reference import cosine
from tests.tiny_runs import lines, pretrain_settings, saved_state

ITEMS, USERS, LENGTH = 35, 16, 5
ENCODER = UserEncoder(
  ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1, num_queries=2
)
KEY = jax.random.key(3)
CROP = functools.partial(augment.crop, ratio=0.5)


@pytest.fixture(scope='module')
def batch():
  return batch_of(USERS, length=LENGTH, num_items=ITEMS)


@pytest.fixture(scope='module')
def params():
  init = jax.jit(ENCODER.init)(jax.random.key(0), jnp.ones((1, 1), int))
  return model_params(jax.tree.map(lambda x: 20 * x, init['params']))


def objective(axis_name=None):
  """Two views, of two passes each, and the penalty of the queries."""
  contrast = functools.partial(contrast_views, axis_name=axis_name)
  return functools.partial(
    views_objective,
    losses={
      'nt_xent': functools.partial(contrast, loss=nt_xent_loss),
      'coles': functools.partial(contrast, loss=coles_loss),
      'overlap': query_overlap,
    },
    encode=functools.partial(
      encode_views,
      encoding=Encoding(ENCODER),
      augmentations=augment.two_of(CROP, functools.partial(CROP, ratio=1)),
    ),
  )


# One program, which several tests run.
whole = jax.jit(jax.value_and_grad(objective(), has_aux=True))


def mean(pair):
  return float(pair[0] / pair[1])


def test_all_views_and_passes_of_a_user_are_alike():
  users = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
  where = jnp.array([True, True, True, False])
  loss, metrics = jax.jit(contrast_views)(
    {}, {'where': where}, Views(jnp.zeros((2, 4, 1), int), jnp.array(users))
  )
  users = users.reshape(6, 4, 5)[:, :3].astype(float)
  expected = jax.jit(nt_xent_loss)(jnp.array(users, jnp.float32))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  means = {name: mean(pair) for name, pair in metrics.items()}
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
  @functools.partial(jax.jit, static_argnums=1)
  @functools.partial(jax.vmap, in_axes=(0, None))
  def strength(step, num_steps):
    return curriculum_strength({'step': step}, num_steps)

  steps = np.arange(120)
  expected = np.minimum(0.015 * (steps // 5 + 1), 0.3) / 0.3
  np.testing.assert_allclose(strength(steps, 100), expected, rtol=1e-6)
  # Fewer steps than levels.
  few = strength(steps[:4], 3)
  np.testing.assert_allclose(few, [0.05, 0.35, 0.7, 1.0], rtol=1e-6)


def test_augmentations_grow_with_the_step(params, batch):
  items = np.tile(np.arange(1, 6, dtype=np.int32), (USERS, 1))
  batch = batch | {'items': items}

  def encode(name, batch):
    settings = pretrain_settings(
      '', '', mask_ratio=0.8, crop_ratio=0.2, augmentations=(name,)
    )
    encoding = Encoding(ENCODER, deterministic=True)
    context = Context(settings, None, encoding, num_steps=1)
    views = encode_curriculum(
      params,
      batch,
      KEY,
      encoding=encoding,
      augmentations_at=functools.partial(view_augmentations, context, 'ccl'),
      num_steps=40,
      passes=1,
    )
    return views.items

  @jax.jit
  def views(batch):
    return {name: encode(name, batch) for name in edited}

  edited = {
    'mask': lambda items: (items == ENCODER.mask_id).sum(-1),
    'crop': lambda items: (items == 0).sum(-1),
  }
  steps = [{'step': np.array(step)} for step in (0, 20, 39, 400)]
  found, full = [views(batch | step) for step in steps], views(batch)
  for name, count in edited.items():
    # Of five items, by strengths of 0.05, 0.55, 1 and 1: of mask at most the
    # ceiling, of crop the floor.
    wanted = [1, 3, 4, 4] if name == 'mask' else [0, 2, 4, 4]
    for items, value in zip(found, wanted, strict=True):
      np.testing.assert_array_equal(count(items[name]), value)
    np.testing.assert_array_equal(found[-1][name], full[name])


def test_eight_devices_and_a_split_table_change_nothing(params, batch):
  (expected, metrics), gradient = whole(params, batch, KEY)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert np.abs(gradient['encoder']['pooling']['query']).max() > 1e-4
  loss, sums, grads = on_eight_devices(
    objective(AXIS),
    params,
    batch,
    KEY,
    mask_id=ENCODER.mask_id,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for name in ('nt_xent_loss', 'coles_loss'):
    np.testing.assert_allclose(
      mean(sums[name]), mean(metrics[name]), rtol=1e-5, err_msg=name
    )
  assert_same_to_rounding(grads['table'], gradient['table'])


def test_padding_users_change_nothing(params, batch):
  items = np.where(batch['where'][:, None], batch['items'], 7)
  garbage = batch | {'items': items}
  (found, _), (expected, _) = (
    whole(params, each, KEY)[0] for each in (garbage, batch)
  )
  np.testing.assert_array_equal(found, expected)


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


def assert_learned(workdir, *losses, queries):
  found = lines(workdir)
  assert np.isfinite([v for line in found for v in line.values()]).all()
  for loss in losses:
    first, _, last = (line[loss] for line in found if loss in line)
    assert last < first, loss
  params = saved_state(workdir)['params']
  assert set(params) == {'table', 'encoder'}
  assert params['encoder']['pooling']['query'].shape == (queries, 8)


def test_methods_learn_together(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    objective=('clue', 'cl4srec', 'idicl', 'ccl'),
    learning_rate=0.03,
    # As published for CL4SRec.
    crop_ratio=0.6,
    mask_ratio=0.3,
    curriculum_steps=1,
    table_update='rows',
  )
  pretrain.main(settings)
  names = [f'{name}_loss' for name in settings.objective]
  validated = [f'validation_{name}' for name in names]
  # The queries are those of IDICL.
  assert_learned(tmp_path, *validated, queries=4)
  first = lines(tmp_path)[0]
  parts = [first[name] for name in names]
  np.testing.assert_allclose(first['loss'], sum(parts), rtol=1e-5)


def test_coles_learns_from_slices_of_histories(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    objective=('coles',),
    learning_rate=0.03,
    num_slices=3,
    slice_lengths=('2', '4'),
  )
  pretrain.main(settings)
  assert_learned(tmp_path, 'validation_loss', queries=1)


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


def test_the_number_of_sequences_per_user():
  counts = {'clue': 2, 'cl4srec': 2, 'idicl': 2, 'ccl': 2, 'coles': 2}
  for name, count in counts.items():
    settings = pretrain_settings('', '', objective=(name,))
    assert sequences_per_user(settings) == count
    lengths = encoded_lengths(settings, np.array([10]), max_length=10)
    # A crop keeps 0.4.
    wanted = {4, 10} if name in ('cl4srec', 'ccl') else {10}
    assert set(lengths) == wanted
