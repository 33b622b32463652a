"""CoSeRec and DuoRec: objectives that need more than the user's sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.contrast import contrast_views
from adaptssr_jax.objectives.coserec import informed_edits
from adaptssr_jax.objectives.duorec import before_last, duorec_objective
from adaptssr_jax.objectives.views import encode_views, views_objective
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.table.lookup import (
  encoder_params,
  model_params,
  with_batch_rows,
)
from adaptssr_jax.training.devices import AXIS, shard
from adaptssr_jax.training.step import pmap_step
from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.pretraining.step import encoded_lengths
from tests.summed import summed
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
# To each item two that are like it, and to every fifth none.
SIMILAR = np.zeros((ITEMS + 2, 2), np.int32)
SIMILAR[1:-1] = (np.arange(ITEMS)[:, None] + [7, 20]) % ITEMS + 1
SIMILAR[5:-1:5] = 0
EDITS = informed_edits(similar=SIMILAR, mask_id=ENCODER.mask_id)


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
  init = jax.jit(ENCODER.init)(jax.random.key(0), jnp.ones((1, 1), int))
  return model_params(jax.tree.map(lambda x: 3 * x, init['params']))


def coserec(axis_name=None, temperature=1.0, **settings):
  contrast = functools.partial(
    contrast_views,
    temperature=temperature,
    similarity='dot',
    axis_name=axis_name,
  )
  encode = functools.partial(
    encode_views,
    encoder=ENCODER,
    augmentations=(EDITS, EDITS),
    passes=1,
    **settings,
  )
  return functools.partial(
    views_objective, losses={'coserec': contrast}, encode=encode
  )


def duorec(axis_name=None, **settings):
  settings = {'encoder': SHORTER, 'axis_name': axis_name} | settings
  return functools.partial(duorec_objective, **settings)


def of_shorter(params):
  """The parameters of `SHORTER`, which has a position less."""
  encoder = dict(params['encoder'])
  encoder['position_embedding'] = encoder['position_embedding'][:-1]
  return params | {'encoder': encoder}


OBJECTIVES = {'coserec': coserec, 'duorec': duorec}


def nt_xent(users, temperature=1.0):
  """-log exp(p) / (exp(p) + sum exp(n)) of both views of each user, mean."""
  users = np.asarray(users, float)
  losses = []
  for view, user in np.ndindex(users.shape[:2]):
    products = users @ users[view, user] / temperature
    positive = products[1 - view, user]
    others = np.delete(products, user, axis=1)
    terms = np.exp(np.append(others.reshape(-1), positive))
    losses.append(np.log(terms.sum()) - positive)
  return np.mean(losses)


def test_coserec_is_nt_xent_of_two_edited_views(params, batch):
  objective = coserec(deterministic=True, temperature=0.7)
  loss, metrics = jax.jit(objective)(params, batch, KEY)
  encode = functools.partial(
    encode_views,
    encoder=ENCODER,
    augmentations=(EDITS, EDITS),
    passes=1,
    deterministic=True,
  )
  views = jax.jit(encode)(params, batch, KEY)
  assert (views.items[0] != views.items[1]).any()
  expected = nt_xent(views.users[:, 0, :-1], 0.7)
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
  params = of_shorter(params)
  objective = duorec(temperature=0.7)
  loss, metrics = jax.jit(objective)(params, batch, KEY)
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
  np.testing.assert_allclose(loss, nt_xent(vectors, 0.7), rtol=1e-5)


def test_without_a_partner_dropout_alone_makes_the_views(params, batch):
  alone = batch | {'partner_items': batch['items']}
  loss, _ = jax.jit(duorec())(of_shorter(params), alone, KEY)
  still = duorec(encoder=SHORTER.clone(dropout_rate=0.0))
  plain, _ = jax.jit(still)(of_shorter(params), alone, KEY)
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
  if name == 'duorec':
    params = of_shorter(params)
  value = jax.jit(
    jax.value_and_grad(lambda p, batch: OBJECTIVES[name]()(p, batch, KEY)[0])
  )
  loss, grads = value(params, batch)
  # All leaves are finite, and those that matter are there.
  for leaf in jax.tree.leaves(grads):
    assert np.isfinite(leaf).all()
  assert np.abs(grads['table']).max() > 1e-4
  # The padding user has another history.
  other = batch['items'].at[-1].set(3), batch['partner_items'].at[-1].set(4)
  again, same = value(
    params, batch | {'items': other[0], 'partner_items': other[1]}
  )
  np.testing.assert_allclose(again, loss, rtol=1e-6)
  for leaf, expected in zip(
    jax.tree.leaves(same), jax.tree.leaves(grads), strict=True
  ):
    np.testing.assert_allclose(leaf, expected, atol=1e-5)
  order = np.random.default_rng(2).permutation(USERS)
  permuted = {name: values[order] for name, values in batch.items()}
  np.testing.assert_allclose(value(params, permuted)[0], loss, rtol=1e-5)
  nobody = batch | {'where': jnp.zeros(USERS, bool)}
  loss, grads = value(params, nobody)
  assert loss == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize('name', OBJECTIVES)
def test_eight_devices_and_a_split_table_change_nothing(params, batch, name):
  if name == 'duorec':
    params = of_shorter(params)
  split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
  objective = OBJECTIVES[name]()
  expected, gradient = jax.jit(
    jax.value_and_grad(lambda p: objective(p, batch, KEY)[0])
  )(params)
  # Behaviours of two users, those of partners, two similar to each, and ends.
  size = 2 * LENGTH * 4 + 2
  function = with_batch_rows(
    OBJECTIVES[name](axis_name=AXIS),
    mask_id=ENCODER.mask_id,
    size=size,
    axis_name=AXIS,
  )
  step = functools.partial(summed, function=function)
  loss, sums, grads = pmap_step(step, num_replicated_args=1)(
    params | {'table': shard(params['table'])}, split, KEY
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(
    sums['loss'][0] / sums['loss'][1], expected, rtol=1e-5
  )
  # Each device has the sum over all of them.
  found = grads['table'].rows.reshape(-1, 4)[: ITEMS + 2] / 8
  wanted = np.asarray(gradient['table'])
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
  query = gradient['encoder']['pooling']['query']
  np.testing.assert_allclose(
    grads['encoder']['pooling']['query'],
    query,
    atol=1e-5 * np.abs(query).max(),
  )


def test_buckets_change_nothing(params, batch):
  for name, make in OBJECTIVES.items():
    start = of_shorter(params) if name == 'duorec' else params
    whole, _ = jax.jit(make())(start, batch, KEY)
    parts, _ = jax.jit(make(buckets=Buckets((3,), 4)))(start, batch, KEY)
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
  # Put in .4, cut to .4, and three times as they are.
  assert of_coserec.tolist() == [
    [3, 7, 60, 60],
    [1, 2, 20, 24],
    *[[2, 5, 50, 60]] * 3,
  ]
  assert of_duorec.tolist() == [[1, 4, 49, 60]]


RUN = {'num_steps': 6, 'embed_dim': 8, 'num_similar': 2}


@pytest.fixture(scope='module', params=OBJECTIVES)
def run(request, tmp_path_factory, data_dir):
  """A run of each objective, and its flags."""
  folder = tmp_path_factory.mktemp(request.param)
  changes = RUN | {'objective': request.param, 'learning_rate': 0.01}
  settings = pretrain_settings(folder, data_dir, **changes)
  pretrain.main(settings)
  return settings.workdir, changes


def losses_of(workdir):
  return [line['loss'] for line in lines(workdir) if 'loss' in line]


def test_losses_fall(run):
  found = losses_of(run[0])
  assert np.isfinite(found).all()
  assert found[-1] < found[0]
  assert 'validation_loss' in lines(run[0])[-1]


@pytest.mark.parametrize('run', ['duorec'], indirect=True)
def test_a_killed_run_goes_on_to_the_bit(run, tmp_path, data_dir, monkeypatch):
  settings = pretrain_settings(tmp_path, data_dir, **run[1])
  with monkeypatch.context() as patch:
    interrupt_at(patch, 5)
    with pytest.raises(Interruption):
      pretrain.main(settings)
  pretrain.main(settings)
  assert_same_run(tmp_path, run[0])


def test_rows_of_a_batch_are_enough(run, tmp_path, data_dir):
  # A row that a device lacks would be nan.
  table = {'shard_table': True, 'table_update': 'rows'}
  pretrain.main(pretrain_settings(tmp_path, data_dir, **run[1] | table))
  np.testing.assert_allclose(losses_of(tmp_path), losses_of(run[0]), rtol=2e-3)


def test_a_plan_has_the_batches_of_the_run(run, tmp_path, data_dir):
  changes = run[1] | {'plan': True, 'table_update': 'rows'}
  plan = pretrain.main(pretrain_settings(tmp_path / 'no', data_dir, **changes))
  assert not (tmp_path / 'no').exists()
  plain = pretrain.main(
    pretrain_settings(
      tmp_path / 'no', data_dir, plan=True, table_update='rows', num_steps=6
    )
  )
  # Of 8 users on a device, int32: the other user, and one behaviour more of
  # both; or two similar items of each of 6 behaviours.
  more = 8 * 4 * {'duorec': 7 + 1, 'coserec': 2 * 6}[run[1]['objective']]
  assert plan.arguments - plain.arguments == more


def test_partners_share_the_last_of_all_behaviours(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path, data_dir, objective='duorec', window='random'
  )
  with pytest.raises(SettingsError, match='--window=random does not go with'):
    pretrain.main(settings)
