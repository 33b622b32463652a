"""CoSeRec and DuoRec, which need more than the sequence of a user."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.contrast import contrast_views
from adaptssr_jax.objectives.coserec import coserec_edits
from adaptssr_jax.objectives.duorec import before_last, duorec_objective
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.objectives.views import encode_views, views_objective
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.table.lookup import encoder_params, model_params
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import pmap_step
from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.planning.plan import shapes_of
from experiments.pretraining.step import (
  encoded_lengths,
  with_partners_and_similar,
)
from tests.bounds import assert_same_to_rounding
from tests.eight_devices import on_eight_devices
from tests.tiny_runs import (
  Interruption,
  assert_same_run,
  interrupt_at,
  lines,
  pretrain_settings,
)

ITEMS, USERS, LENGTH = 60, 16, 7
# One behaviour less is read: the last one is the target of DuoRec.
ENCODER = UserEncoder(ITEMS, max_length=LENGTH, embed_dim=4, num_layers=1)
SHORTER = ENCODER.clone(max_length=LENGTH - 1)
KEY = jax.random.key(3)
TEMPERATURE = 0.7
# To each item two that are like it, and to every fifth none.
SIMILAR = np.zeros((ITEMS + 2, 2), np.int32)
SIMILAR[1:-1] = (np.arange(ITEMS)[:, None] + [7, 20]) % ITEMS + 1
SIMILAR[5:-1:5] = 0
EDITS = coserec_edits(similar=SIMILAR, mask_id=ENCODER.mask_id)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)

  def histories(lengths):
    items = rng.integers(1, ITEMS + 1, (USERS, LENGTH)).astype(np.int32)
    return np.where(np.arange(LENGTH) < lengths[:, None], items, 0)

  items = histories(np.array([0, 1, 2, 3, 4, 5, *[LENGTH] * (USERS - 6)]))
  partners = histories(rng.integers(2, LENGTH + 1, USERS))
  # Those who have nobody.
  partners[:4] = items[:4]
  return {
    'items': jnp.asarray(items),
    'partner_items': jnp.asarray(partners),
    'similar_items': jnp.asarray(SIMILAR[items]),
    'where': jnp.arange(USERS) < USERS - 1,
    'example_id': jnp.arange(USERS),
  }


@pytest.fixture(scope='module')
def params():
  """Of each objective: `SHORTER` has a position less."""
  init = jax.jit(ENCODER.init)(jax.random.key(0), jnp.ones((1, 1), int))
  longer = model_params(jax.tree.map(lambda x: 3 * x, init['params']))
  encoder = dict(longer['encoder'])
  encoder['position_embedding'] = encoder['position_embedding'][:-1]
  return {'coserec': longer, 'duorec': longer | {'encoder': encoder}}


def coserec(axis_name=None):
  contrast = functools.partial(
    contrast_views,
    temperature=TEMPERATURE,
    similarity='dot',
    axis_name=axis_name,
  )
  return functools.partial(
    views_objective, losses={'coserec': contrast}, encode=edited_views
  )


def duorec(encoder=SHORTER, **settings):
  encoding = Encoding(encoder, **settings)
  return functools.partial(
    duorec_objective, encoding=encoding, temperature=TEMPERATURE
  )


edited_views = functools.partial(
  encode_views,
  encoding=Encoding(ENCODER),
  augmentations=(EDITS, EDITS),
  passes=1,
)
OBJECTIVES = {'coserec': coserec, 'duorec': duorec}
# One program of each, which several tests run.
value_and_grad = {
  name: jax.jit(jax.value_and_grad(make(), has_aux=True))
  for name, make in OBJECTIVES.items()
}


def nt_xent(users):
  """-log exp(p) / (exp(p) + sum exp(n)) of both views of each user, mean."""
  users = np.asarray(users, float)
  losses = []
  for view, user in np.ndindex(users.shape[:2]):
    products = users @ users[view, user] / TEMPERATURE
    positive = products[1 - view, user]
    others = np.delete(products, user, axis=1)
    terms = np.exp(np.append(others.reshape(-1), positive))
    losses.append(np.log(terms.sum()) - positive)
  return np.mean(losses)


def test_coserec_is_nt_xent_of_two_edited_views(params, batch):
  params = params['coserec']
  (loss, metrics), _ = value_and_grad['coserec'](params, batch, KEY)
  views = jax.jit(edited_views)(params, batch, KEY)
  assert (views.items[0] != views.items[1]).any()
  expected = nt_xent(views.users[:, 0, :-1])
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert metrics['loss'][1] == USERS - 1


def test_short_sequences_are_not_cut_and_long_ones_get_all_five():
  keys = jax.random.split(KEY, 2000)
  edit = jax.jit(jax.vmap(EDITS, (0, None)))
  # 1, 2, .. without those that have nothing like them.
  items = np.array([1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 0, 0, 0, 0])
  for n in (4, 5, 10):
    row = np.where(np.arange(14) < n, items, 0)
    counts = dict.fromkeys(('crop', 'insert', 'mask', 'same', 'other'), 0)
    for view in np.asarray(edit(keys, jnp.asarray(row, jnp.int32))):
      left = (view != 0).sum()
      if left != n:
        counts['crop' if left < n else 'insert'] += 1
      elif (view == ENCODER.mask_id).any():
        counts['mask'] += 1
      elif sorted(view) == sorted(row):
        counts['same'] += 1
      else:
        counts['other'] += 1
    # Of 10 behaviours 2 are shuffled; `other` are substitutes.
    names = ('insert', 'mask', 'other') if n == 4 else tuple(counts)
    for name, count in counts.items():
      share = 1 / len(names) if name in names else 0
      assert abs(count / 2000 - share) < 0.05, (n, counts)


def test_duorec_is_nt_xent_of_what_precedes_the_target(params, batch):
  params = params['duorec']
  (loss, metrics), _ = value_and_grad['duorec'](params, batch, KEY)
  encode = jax.jit(
    lambda items, key: SHORTER.apply(
      {'params': encoder_params(params)},
      items[None],
      deterministic=False,
      keys=key[None],
    )[0]
  )
  vectors = []
  for user in range(2, USERS - 1):
    keys = jax.random.split(jax.random.fold_in(KEY, user))
    for name, key in zip(('items', 'partner_items'), keys, strict=True):
      row = batch[name][user]
      n = int((row != 0).sum())
      before = np.where(np.arange(LENGTH - 1) < n - 1, row[:-1], 0)
      vectors.append(encode(jnp.asarray(before), key))
  vectors = np.array(vectors).reshape(-1, 2, 4).swapaxes(0, 1)
  # Of users with 0 and 1 behaviours nothing is left, and one is padding.
  assert metrics['loss'][1] == USERS - 3 == vectors.shape[1]
  np.testing.assert_allclose(loss, nt_xent(vectors), rtol=1e-5)


def test_without_a_partner_dropout_alone_makes_the_views(params, batch):
  alone = batch | {'partner_items': batch['items']}
  (loss, _), _ = value_and_grad['duorec'](params['duorec'], alone, KEY)
  still = duorec(encoder=SHORTER.clone(dropout_rate=0.0))
  plain, _ = jax.jit(still)(params['duorec'], alone, KEY)
  assert abs(loss - plain) > 1e-3


@pytest.mark.parametrize('wide', [1, 5, 12])
def test_the_encoder_reads_what_is_just_before_the_target(wide):
  for n in range(wide + 1):
    row = jnp.where(jnp.arange(wide) < n, jnp.arange(wide) + 1, 0)[None]
    found = before_last(row, length=4)[0]
    kept = [int(item) for item in found if item]
    assert kept == list(range(1, n))[-4:]
    assert len(found) == min(wide, 4)
    assert not found[len(kept) :].any()


@pytest.mark.parametrize('name', OBJECTIVES)
def test_padding_users_and_their_order_change_nothing(params, batch, name):
  params, run = params[name], value_and_grad[name]
  (loss, _), grads = run(params, batch, KEY)
  # All leaves are finite, and those that matter are there.
  for leaf in jax.tree.leaves(grads):
    assert np.isfinite(leaf).all()
  assert np.abs(grads['table']).max() > 1e-4
  # The padding user has another history.
  other = {x: batch[x].at[-1].set(3) for x in ('items', 'partner_items')}
  (again, _), same = run(params, batch | other, KEY)
  np.testing.assert_allclose(again, loss, rtol=1e-6)
  for leaf, expected in zip(
    jax.tree.leaves(same), jax.tree.leaves(grads), strict=True
  ):
    np.testing.assert_allclose(leaf, expected, atol=1e-5)
  order = np.random.default_rng(2).permutation(USERS)
  permuted = {name: values[order] for name, values in batch.items()}
  (other, _), _ = run(params, permuted, KEY)
  np.testing.assert_allclose(other, loss, rtol=1e-5)
  nobody = batch | {'where': jnp.zeros(USERS, bool)}
  (loss, _), grads = run(params, nobody, KEY)
  assert loss == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize('name', OBJECTIVES)
def test_eight_devices_and_a_split_table_change_nothing(params, batch, name):
  params = params[name]
  (expected, _), gradient = value_and_grad[name](params, batch, KEY)
  loss, sums, grads = on_eight_devices(
    OBJECTIVES[name](axis_name=AXIS),
    params,
    batch,
    KEY,
    mask_id=ENCODER.mask_id,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(
    sums['loss'][0] / sums['loss'][1], expected, rtol=1e-5
  )
  found = {'table': grads['table'], **grads['encoder']['pooling']}
  wanted = {'table': gradient['table'], **gradient['encoder']['pooling']}
  assert_same_to_rounding(found, wanted)


def test_buckets_change_nothing(params, batch):
  # Views as those of CoSeRec are in buckets in `test_pooled_items`.
  params = params['duorec']
  (whole, _), _ = value_and_grad['duorec'](params, batch, KEY)
  parts, _ = jax.jit(duorec(buckets=Buckets((3,), 4)))(params, batch, KEY)
  np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_edited_sequences_are_as_long_as_the_sample_says():
  lengths = np.array([2, 5, 50, 90])
  of_coserec, of_duorec = (
    encoded_lengths(
      pretrain_settings('', '', objective=name, max_length=60),
      lengths,
      max_length=60,
    ).reshape(-1, 4)
    for name in OBJECTIVES
  )
  # One of five edits cuts to .4; what insertion adds is left out.
  assert of_coserec.tolist() == [[1, 2, 20, 24], *[[2, 5, 50, 60]] * 4]
  assert of_duorec.tolist() == [[2, 5, 50, 60]]


RUN = {'num_steps': 6, 'num_similar': 2, 'learning_rate': 0.01}
DUOREC = RUN | {'objective': 'duorec'}
# A row that a device lacks would be nan.
ROWS = {'shard_table': True, 'table_update': 'rows'}


@pytest.fixture(scope='module')
def run(tmp_path_factory, data_dir):
  """The workdir of a run of DuoRec."""
  folder = tmp_path_factory.mktemp('duorec')
  pretrain.main(pretrain_settings(folder, data_dir, **DUOREC))
  return folder


def assert_learned(workdir):
  found = [line['loss'] for line in lines(workdir) if 'loss' in line]
  assert np.isfinite(found).all()
  assert found[-1] < found[0]
  assert 'validation_loss' in lines(workdir)[-1]
  return found


def test_coserec_learns_from_rows_of_a_batch(tmp_path, data_dir):
  flags = RUN | ROWS | {'objective': 'coserec'}
  pretrain.main(pretrain_settings(tmp_path, data_dir, **flags))
  assert_learned(tmp_path)


def test_duorec_learns_the_same_from_rows_of_a_batch(run, tmp_path, data_dir):
  pretrain.main(pretrain_settings(tmp_path, data_dir, **DUOREC | ROWS))
  np.testing.assert_allclose(
    assert_learned(tmp_path), assert_learned(run), rtol=2e-3
  )


def test_a_killed_run_goes_on_to_the_bit(run, tmp_path, data_dir, monkeypatch):
  settings = pretrain_settings(tmp_path, data_dir, **DUOREC)
  with monkeypatch.context() as patch:
    interrupt_at(patch, 5)
    with pytest.raises(Interruption):
      pretrain.main(settings)
  pretrain.main(settings)
  assert_same_run(tmp_path, run)


def test_similar_items_are_those_of_training_and_partners_of_the_split():
  rows = {'train': [[1, 2], [2, 1], [3, 4]], 'validation': [[1, 4], [2, 4]]}
  splits = {
    name: UserArrays(None, Ragged.from_rows(some))
    for name, some in rows.items()
  }
  settings = pretrain_settings(
    '', '', objective=('coserec', 'duorec'), num_similar=1
  )
  found = with_partners_and_similar(settings, splits, num_items=4)
  for users in found.values():
    assert users.similar_items[1:5, 0].tolist() == [2, 1, 4, 3]
  assert found['train'].by_last_item[4].tolist() == [2]
  assert found['validation'].by_last_item[4].tolist() == [0, 1]


def test_a_plan_has_the_batches_of_the_run(tmp_path, data_dir, monkeypatch):
  def traced(settings, data, make):
    key = jax.random.key(settings.seed)
    training, state = shapes_of(functools.partial(make, data), key)
    batch = training.batches.on_devices(0)
    step = pmap_step(training.step, num_replicated_args=1)
    jax.make_jaxpr(step)(state, batch, key)
    return {name: x.shape for name, x in batch.items()}

  monkeypatch.setattr(pretrain, 'plan_run', traced)
  settings = pretrain_settings(
    tmp_path / 'no', data_dir, plan=True, objective=tuple(OBJECTIVES), **RUN
  )
  shapes = pretrain.main(settings)
  # 8 users on a device, of one behaviour more than the encoder reads.
  assert shapes['items'] == shapes['partner_items'] == (8, 8, 7)
  assert shapes['similar_items'] == (8, 8, 7, 2)
  # Beside what draws slices, all see whole histories.
  pretrain.main(
    dataclasses.replace(
      settings,
      objective=('ccl', *OBJECTIVES),
      augmentations=('slice', 'mask'),
    )
  )
  assert not (tmp_path / 'no').exists()


def test_a_plan_may_have_fewer_items_than_the_data():
  users = UserArrays(None, Ragged.from_rows([[1, 5, 9], [5, 9]]))
  settings = pretrain_settings('', '', objective=('coserec',))
  splits = with_partners_and_similar(settings, {'train': users}, num_items=2)
  # Rows for padding, the mask, and all items that a batch may hold.
  assert splits['train'].similar_items.shape == (11, 1)


def test_partners_share_the_last_of_all_behaviours(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path, data_dir, objective='duorec', window='random'
  )
  with pytest.raises(SettingsError, match='--window=random does not go with'):
    pretrain.main(settings)
