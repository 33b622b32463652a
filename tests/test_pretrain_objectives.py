"""Pre-training by slices and prefixes, with and without AdaptSSR."""

import numpy as np
import pytest

from adaptssr_jax.data import Ragged, UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.training.devices import AXIS
from experiments import finetune, pretrain
from experiments.flags.binder import SettingsError
from experiments.pretraining import validation
from experiments.pretraining.context import Context
from experiments.pretraining.objectives import MAKERS, init_head
from tests.tiny_runs import (
  assert_same_bits,
  finetune_settings,
  lines,
  pretrain_settings,
  saved_state,
)

POOLED = {'objective': ('pooled_items',), 'slice_lengths': ('2', '6')}
JOINT = POOLED | {
  'objective': ('pooled_items', 'adaptssr'),
  'objective_weights': ('1', '0.3'),
  'loss_form': 'list',
  'temperature': 0.1,
}


@pytest.fixture(scope='module')
def pooled(tmp_path_factory, data_dir):
  folder = tmp_path_factory.mktemp('pooled') / 'run'
  settings = pretrain_settings(folder, data_dir, num_steps=6, **POOLED)
  pretrain.main(settings)
  return settings


def test_pooled_items_learn(pooled):
  losses = [line['loss'] for line in lines(pooled.workdir) if 'loss' in line]
  assert losses[-1] < losses[0]
  assert 'validation_effective_rank' in lines(pooled.workdir)[-1]
  params = saved_state(pooled.workdir)['params']
  assert set(params) == {'table', 'encoder', 'head'}
  # Wide enough to begin with.
  assert 0.05 < params['table'].std() < 0.07


def test_adaptssr_joins_from_the_first_stage(pooled, tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    init_from=pooled.workdir,
    num_steps=2,
    # Of a run whose table is whole.
    shard_table=True,
    **JOINT,
  )
  pretrain.main(settings)
  line = lines(tmp_path)[0]
  total = line['pooled_items_loss'] + 0.3 * line['adaptssr_loss']
  np.testing.assert_allclose(line['loss'], total, rtol=1e-5)
  values = [v for line in lines(tmp_path) for v in line.values()]
  assert np.isfinite(values).all()
  assert {'lambda', 'implicit', 'explicit'} <= set(line)


def test_other_objectives_train_together(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    num_steps=2,
    # Nothing in common but the encoder: each sees what it needs, one of them an
    # item more, and two of them three slices, which they do not share.
    objective=('next_items', 'pooled_items', 'adaptssr', 'causal_items'),
    num_next=2,
    augmentations=('slice', 'mask'),
    num_slices=3,
    window='random',
    # Vectors three times as wide as an item.
    num_queries=2,
    readout='pooled,last',
  )
  pretrain.main(settings)
  values = [v for line in lines(tmp_path) for v in line.values()]
  assert np.isfinite(values).all()
  first = lines(tmp_path)[0]
  parts = [first[f'{name}_loss'] for name in settings.objective]
  np.testing.assert_allclose(first['loss'], sum(parts), rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'similarity'),
  [('pooled_items', None), ('coserec', 'dot'), ('cl4srec', 'dot')],
)
def test_views_are_encoded_once_and_compared_as_published(name, similarity):
  settings = pretrain_settings('', '', objective=name, temperature=0.7)
  similar = np.zeros((11, 2), np.int32)
  users = UserArrays(None, Ragged.from_rows([[1]]), similar_items=similar)
  made = MAKERS[name](
    Context(settings, users, Encoding(UserEncoder(9)), num_steps=1)
  ).keywords
  assert made['encode'].keywords['passes'] == 1
  assert not made['encode'].keywords['encoding'].deterministic
  (loss,) = made['losses'].values()
  assert loss.keywords['axis_name'] == AXIS
  assert loss.keywords.get('similarity') == similarity
  assert loss.keywords.get('temperature') == (0.7 if similarity else None)


def test_an_objective_of_somebody_else(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    num_steps=9,
    learning_rate=0.02,
    objective=('tests.own_objective:length_objective',),
  )
  pretrain.main(settings)
  found = [
    line['validation_loss']
    for line in lines(tmp_path)
    if 'validation_loss' in line
  ]
  assert found[-1] < 0.9 * found[0]
  assert saved_state(tmp_path)['params']['head']['weight'].any()


@pytest.mark.parametrize(
  'name', ['tests.own_objective:no_objective', 'no_module:f', ':f']
)
def test_a_function_that_is_not_there(tmp_path, data_dir, name):
  settings = pretrain_settings(tmp_path, data_dir, objective=(name,))
  with pytest.raises(SettingsError, match=f'--objective={name}: .* MODULE'):
    pretrain.main(settings)


def test_the_bias_starts_at_the_shares_of_the_items():
  users = UserArrays(None, Ragged.from_rows([[1, 1, 1], [3, 1]]))
  encoder = UserEncoder(3, embed_dim=2)
  settings = pretrain_settings('', '', **POOLED)
  bias = init_head(settings, encoder, users)['head']['bias']
  # One more of each: padding, then items 1, 2 and 3.
  np.testing.assert_allclose(
    np.exp(bias), np.array([1, 5, 1, 2]) / 9, rtol=1e-6
  )
  zeros = pretrain_settings('', '', output_bias='zeros', **POOLED)
  assert not init_head(zeros, encoder, users)['head']['bias'].any()
  assert init_head(pretrain_settings('', ''), encoder, users) == {}


def test_probes_of_several_tasks_choose_by_their_mean(
  tmp_path, data_dir, monkeypatch
):
  told = iter([0.6, 0.2, 0.5, 0.4, 0.3, 0.3])
  monkeypatch.setattr(validation, 'probe_score', lambda *_, **__: next(told))
  tasks = ('gender', 'age')
  settings = pretrain_settings(
    tmp_path, data_dir, select_by='probe', probe_task=tasks, **POOLED
  )
  assert int(pretrain.main(settings).step) == 6
  found = [line for line in lines(tmp_path) if 'validation_probe' in line]
  assert [line['validation_probe_age'] for line in found] == [0.2, 0.4, 0.3]
  assert found[0]['validation_probe'] == pytest.approx(0.4)


def test_the_probe_reads_the_vectors_of_the_epoch(
  tmp_path, data_dir, monkeypatch
):
  probe_score, read = validation.probe_score, []

  def recorded(params, **settings):
    read.append(params)
    return probe_score(params, **settings)

  monkeypatch.setattr(validation, 'probe_score', recorded)
  settings = pretrain_settings(
    tmp_path,
    data_dir,
    num_steps=3,
    select_by='probe',
    probe_task=('gender', 'click'),
    **POOLED,
  )
  state = pretrain.main(settings)
  for params in read:
    assert_same_bits(params, state.params)
  assert len(read) == 2
  (line,) = [line for line in lines(tmp_path) if 'validation_probe' in line]
  # Of 40 validation users, which are of two genders.
  gender = line['validation_probe_gender']
  assert 0.4 < gender <= 1
  assert abs(gender * 40 - round(gender * 40)) < 1e-4
  mean = (gender + line['validation_probe_click']) / 2
  assert line['validation_probe'] == pytest.approx(mean)
  # As the vectors of that step are read by themselves.
  alone = finetune_settings(
    tmp_path / 'read',
    data_dir,
    task='click',
    mode='probe',
    pretrained=str(tmp_path),
    learning_rate=None,
    dropout_rate=None,
  )
  found = finetune.main(alone)['validation']['ndcg@10']
  assert line['validation_probe_click'] == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'slice_lengths': ('5',)}, '--slice_lengths must be two numbers'),
    ({'slice_lengths': ('4', '3')}, 'the shortest and longest slice'),
    ({'slice_lengths': ('4', '90')}, 'the encoder reads 6 behaviours; shorten'),
    (
      {'objective_weights': ('1',)},
      'a number above 0 for each of --objective=',
    ),
    ({'objective_weights': ('1', '-1')}, '--objective_weights=1,-1 must be'),
    (
      {'objective': ('adaptssr', 'adaptssr')},
      "--objective has 'adaptssr' twice",
    ),
    ({'objective': ('mask',)}, '--objective must be adaptssr or masked_items'),
    ({'slice_lengths': '1,2'}, '--slice_lengths takes several words'),
    ({'augmentations': 'crop'}, '--augmentations takes several words'),
    ({'smooth': 0.1}, '--smooth=0.1 is for hard pairs'),
    ({'hard_negatives': False}, 'a list always has all negatives'),
    (
      {'second_augmentations': ('mask',)},
      'give slice to both views or to neither',
    ),
    (
      {'second_augmentations': ('slice', 'crop'), 'num_slices': 3},
      '--second_augmentations is for two views',
    ),
    ({'table_update': 'rows'}, 'does not go with --objective=pooled_items'),
    (
      {'select_by': 'probe', 'probe_task': ('pretrain',)},
      '--probe_task=pretrain has no labels and no targets',
    ),
  ],
)
def test_bad_flags_are_refused(tmp_path, data_dir, changes, words):
  with pytest.raises(SettingsError, match=words):
    pretrain.main(pretrain_settings(tmp_path, data_dir, **JOINT | changes))
