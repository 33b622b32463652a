"""Fine-tuning that is impossible: no finite loss, or nothing to learn."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_similarity_command import ITEMS

from adaptssr_jax.checkpoint.encoders import save_encoder
from adaptssr_jax.data import Ragged, UserArrays, UserData, Vocabulary
from adaptssr_jax.encoder.model import UserEncoder
from experiments import finetune
from experiments.finetuning import tasks
from experiments.finetuning.data import check_task
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import SELECT_BY
from experiments.probing import probe
from tests.random_params import drawn_params
from tests.tiny_runs import ENCODER, finetune_settings, lines

SPLITS = ('train', 'validation', 'test')


def refuse(constant):
  raise AssertionError(f'{constant} is not JSON')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'task': 'gendr'}, r"no 'gendr'; did you mean 'gender'\? There are: p"),
    ({'task': 'pretrain'}, r'--task=pretrain has no labels and no targets'),
    ({'batch_size': 4}, r'--batch_size: .*take 8'),
    ({'task': 'age', 'select_by': 'auc'}, r'needs 2 classes; age has 7'),
    ({'pretrained': 'RUN', 'num_layers': 2}, r'--num_layers=2 contradicts'),
    ({'pretrained': 'RUN', 'num_queries': 3}, r'--num_queries=3 contradicts'),
    (
      {'task': 'click', 'mode': 'probe', 'with_bag': True},
      '--with_bag is for classification or conversion tasks; click is a ran',
    ),
    (
      {'task': 'click', 'mode': 'probe', 'probe_model': 'lightgbm'},
      '--probe_model is for classification or conversion tasks',
    ),
    (
      {'task': 'click', 'mode': 'probe', 'tied_targets': True},
      '--tied_targets is for --mode=full or frozen or zero_shot, not probe',
    ),
    (
      {'task': 'click', 'mode': 'probe', 'ranking_loss': 'softmax'},
      '--ranking_loss is for --mode=full or frozen, not probe',
    ),
    ({'task': 'click', 'kind': 'conversion'}, '--kind=conversion needs labels'),
    ({'task': 'age', 'kind': 'conversion'}, 'needs 2 classes; age has 7'),
    ({'select_by': 'ndcg@10'}, 'not measured in a classification task: take'),
    ({'task': 'click', 'select_by': 'auc'}, 'not measured in a ranking task'),
    ({'positive_weight': 2.0}, '--positive_weight is for conversion tasks'),
    (
      {
        'dataset': 'movielens_users/100k',
        'task': 'click_by_user',
        'split_seed': 1,
      },
      'would separate the rows',
    ),
    ({'task': 'click', 'head': 'linear'}, '--head is for classification or'),
    ({'head': 'probe', 'train_users': 1}, '--head=probe needs training rows'),
    (
      {'head_epochs': 1, 'table_update': 'rows'},
      '--table_update=rows does not go with --head_epochs=1',
    ),
    (
      {'head_epochs': 1, 'num_steps': 4},
      '--head_epochs=1 leaves none of the 4 steps for the encoder: take',
    ),
  ],
)
def test_what_does_not_fit_the_task_is_refused(
  pretrained, tmp_path, data_dir, changes, words
):
  if 'pretrained' in changes:
    changes = changes | {'pretrained': pretrained.workdir}
  with pytest.raises(SettingsError, match=words):
    finetune.main(finetune_settings(tmp_path, data_dir, **changes))


def test_no_folder_is_made_for_a_task_that_is_refused(tmp_path, data_dir):
  settings = finetune_settings(tmp_path / 'run', data_dir, train_users=121)
  words = '--train_users=121 is more than the 120 training rows of gender'
  with pytest.raises(SettingsError, match=words):
    finetune.main(settings)
  assert not (tmp_path / 'run').exists()


def save_broken_run(folder):
  """An encoder without a finite number, of the shape of other tiny runs."""
  encoder = UserEncoder(num_items=len(ITEMS), **ENCODER)
  params = jax.tree.map(
    lambda leaf: jnp.full(leaf.shape, jnp.nan), drawn_params(encoder, seed=0)
  )
  save_encoder(folder, encoder, params, ITEMS)
  return str(folder)


def test_a_run_that_diverged_warns_and_has_no_scores(
  tmp_path, data_dir, capsys
):
  changes = {'num_epochs': 2, 'pretrained': save_broken_run(tmp_path / 'from')}
  folder = tmp_path / 'run'
  settings = finetune_settings(folder, data_dir, **changes)
  result = finetune.main(settings)
  printed = capsys.readouterr().out
  for step in (4, 8):
    assert printed.count(f'WARNING: at step {step} the model') == 1
  assert 'smaller --learning_rate' in printed
  assert 'accuracy none, macro_f1 none, auc none' in printed
  assert {line['step'] for line in lines(folder)} >= {4, 8}
  assert not any('validation_auc' in line for line in lines(folder))
  text = (folder / 'result.json').read_text()
  assert json.loads(text, parse_constant=refuse) == result
  assert result['best_step'] == 8
  nothing = dict.fromkeys(('accuracy', 'macro_f1', 'auc'))
  assert result['validation'] == result['test'] == nothing
  for change in ({'patience': 2}, {'num_epochs': 3}):
    with pytest.raises(SettingsError, match=f'--{next(iter(change))} was'):
      finetune.main(finetune_settings(folder, data_dir, **changes | change))


@pytest.mark.parametrize('kind', ['classification', 'conversion', 'ranking'])
@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_an_epoch_whose_outputs_are_not_finite_has_no_score(
  kind, broken, capsys
):
  outputs = np.ones((4, 2) if kind == 'classification' else 4, np.float32)
  users = UserArrays(None, None, np.array([0, 1, 0, 1], np.int32))

  def predict(params, users):
    del params, users
    return outputs

  def validated():
    return finetune.validate(
      types.SimpleNamespace(step=1234, params=None),
      users=users,
      predict=predict,
      kind=tasks.KINDS[kind],
      metric=SELECT_BY[kind][0],
    )

  values, score = validated()
  assert values
  assert np.isfinite(score)
  assert capsys.readouterr().out == ''
  outputs.flat[2] = broken
  assert validated() == ({}, None)
  assert 'WARNING: at step 1,234 the model' in capsys.readouterr().out


def data_of(kind='classification', **labels):
  """Two classes, and rows of these labels in each split."""
  splits = {
    name: UserArrays(
      None, Ragged.from_rows([[1]] * len(label)), np.array(label, np.int32)
    )
    for name, label in labels.items()
  }
  return UserData('made', splits, Vocabulary(['a'], ['no', 'yes']), kind)


@pytest.mark.parametrize('split', ['validation', 'test'])
@pytest.mark.parametrize(
  ('kind', 'other'),
  [('classification', 'accuracy'), ('conversion', 'log_loss')],
)
def test_auc_needs_both_classes_in_every_split(split, kind, other):
  settings = finetune.FinetuneSettings(task='buys', select_by='auc')
  labels = {name: [0, 1, 1] for name in SPLITS}
  check_task(settings, data_of(kind, **labels))
  labels[split] = [1, 1]
  words = f'all 2 {split} rows are yes: take --select_by={other}'
  with pytest.raises(SettingsError, match=words):
    check_task(settings, data_of(kind, **labels))


@pytest.mark.parametrize(
  ('trained', 'allowed', 'refused', 'words'),
  [
    (
      'buys',
      {},
      {'split_seed': 1},
      'test rows of --split_seed=1',
    ),
    ('buys', {'task': 'age', 'split_seed': 1}, None, None),
    ('thumb_up', {'task': 'age'}, {'task': 'click'}, 'that --task=click holds'),
  ],
)
def test_a_source_that_has_seen_test_rows_is_refused(
  monkeypatch, trained, allowed, refused, words
):
  source = finetune.FinetuneSettings(
    dataset='movielens_users/1m', task=trained, pretrained='a'
  )
  monkeypatch.setattr(
    'experiments.finetuning.data.restore_description',
    lambda run: types.SimpleNamespace(flags=source.flag_values()),
  )
  labels = data_of('classification', **{name: [0, 1] for name in SPLITS})
  check_task(dataclasses.replace(source, **allowed), labels)
  other_data = {'dataset': 'movielens_users/100k'} | (refused or {})
  check_task(dataclasses.replace(source, **other_data), labels)
  if refused:
    with pytest.raises(SettingsError, match=words):
      check_task(dataclasses.replace(source, **refused), labels)


@pytest.mark.parametrize(
  ('few', 'words'),
  [(2, r'all 2 .* take more than --train_users=2'), (0, r'all 3 .*frozen$')],
)
def test_a_probe_of_one_class_is_refused_before_it_encodes(
  tmp_path, monkeypatch, few, words
):
  monkeypatch.delattr(probe, 'encode_splits')
  labels = {name: [1, 1, 1] for name in SPLITS}
  settings = finetune.FinetuneSettings(mode='probe', train_users=few)
  with pytest.raises(SettingsError, match=words) as error:
    probe.probe(settings, tmp_path, data_of(**labels), [])
  assert ('--train_users' in str(error.value)) == bool(few)


def test_vectors_that_are_no_numbers_are_not_read(tmp_path, monkeypatch):
  vectors = np.full((3, 2), np.inf)
  monkeypatch.setattr(
    probe, 'encoded', lambda *_, **__: [(None, None, vectors)]
  )
  settings = finetune.FinetuneSettings(mode='probe')
  data = data_of(**{name: [0, 1, 1] for name in SPLITS})
  with pytest.raises(SettingsError, match='nan or infinity'):
    probe.probe(settings, tmp_path, data, [(UserEncoder(3), None)])
