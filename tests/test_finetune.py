"""Fine-tuning as a command: the best epoch, tested once."""

import contextlib
import dataclasses
import functools
import io
import json
import shutil

import jax
import pytest
from sklearn import metrics

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.table.lookup import encoder_params
from experiments import finetune
from experiments.flags.binder import SettingsError
from experiments.planning.plan import shapes_of
from experiments.run.data import open_data
from tests.fine_tuned import logits_by_hand
from tests.tiny_runs import (
  Interruption,
  assert_same_bits,
  assert_same_run,
  files,
  finetune_settings,
  interrupt_at,
  lines,
)


@pytest.fixture(scope='module')
def tuned(pretrained, tmp_path_factory, data_dir):
  """The settings of a run of three epochs of four steps."""
  settings = finetune_settings(
    tmp_path_factory.mktemp('finetune') / 'run',
    data_dir,
    pretrained=pretrained.workdir,
  )
  finetune.main(settings)
  return settings


def result_of(settings):
  return json.loads(files(settings.workdir)['result.json'])


def expected_scores(settings, split, step):
  """The metrics of a saved model, without batches, devices or this library."""
  users = open_data(settings, task=settings.task).splits[split]
  logits = logits_by_hand(settings, step, users)
  guess, label = logits.argmax(axis=1), users.label
  return {
    'accuracy': metrics.accuracy_score(label, guess),
    'macro_f1': metrics.f1_score(label, guess, average='macro'),
    'auc': metrics.roc_auc_score(label, logits[:, 1] - logits[:, 0]),
  }


def test_a_run_leaves_its_folder(tuned):
  names = {name.split('/')[0] for name in files(tuned.workdir)}
  assert {
    'flags.txt',
    'metrics.jsonl',
    'vocabulary',
    'checkpoints',
    'result.json',
  } < names
  result = result_of(tuned)
  assert list(result) == [
    'task',
    'pretrained',
    'best_step',
    'validation',
    'test',
  ]
  assert result['task'] == 'gender'
  assert result['pretrained'] == tuned.pretrained


def test_every_epoch_is_validated(tuned):
  found = lines(tuned.workdir)
  trained = [line['step'] for line in found if 'loss' in line]
  validated = [line['step'] for line in found if 'validation_auc' in line]
  assert trained == [2, 4, 6, 8, 10, 12]
  assert validated == [4, 8, 12]


@pytest.mark.parametrize('select_by', ['accuracy', 'auc'])
def test_the_best_epoch_is_that_of_the_validation(tuned, tmp_path, select_by):
  settings = tuned
  # The accuracy is what chooses unless a flag says otherwise.
  if select_by == 'auc':
    settings = dataclasses.replace(
      tuned, workdir=str(tmp_path), select_by=select_by
    )
  result = finetune.main(settings)
  scores = {
    line['step']: line[f'validation_{select_by}']
    for line in lines(settings.workdir)
    if 'validation_auc' in line
  }
  best = max(scores, key=scores.get)  # The first of equals.
  assert len(set(scores.values())) > 1
  assert result['best_step'] == best
  assert result['validation'][select_by] == scores[best]
  assert result == result_of(settings)
  # 40 users in batches of 32, of which the last is a part of one; the direct
  # computation knows of no batches.
  for split in ('validation', 'test'):
    expected = expected_scores(settings, split, best)
    assert result[split] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
  ('task', 'outputs'), [('gender', 2), ('age', 7), ('conversion', 1)]
)
def test_the_head_fits_the_task(data_dir, task, outputs):
  settings = finetune_settings('unused', data_dir, task=task)
  make = functools.partial(
    finetune.make_model, settings, finetune.open_task(settings)
  )
  model, params = shapes_of(make, jax.random.key(0))
  assert model['head'].num_outputs == outputs
  assert params['head']['output']['bias'].shape == (outputs,)


def test_a_finished_run_says_so_and_changes_nothing(tuned, capsys):
  before = files(tuned.workdir)
  assert finetune.main(tuned) == result_of(tuned)
  assert 'finished, see result.json' in capsys.readouterr().out
  assert files(tuned.workdir) == before


def test_interrupted_and_resumed_is_uninterrupted(
  tuned, tmp_path, data_dir, monkeypatch
):
  settings = finetune_settings(tmp_path, data_dir, pretrained=tuned.pretrained)
  # With a step lost; right after an epoch's score.
  for step in (7, 2):
    with monkeypatch.context() as patch:
      interrupt_at(patch, step)
      with pytest.raises(Interruption):
        finetune.main(settings)
    assert not (tmp_path / 'result.json').exists()
  finetune.main(settings)
  assert_same_run(tmp_path, tuned.workdir)
  assert result_of(settings) == result_of(tuned)


def test_a_run_that_died_before_its_result_only_evaluates(
  tuned, tmp_path, capsys
):
  shutil.copytree(tuned.workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  settings = tuned.__class__(
    **{**tuned.__dict__, 'workdir': str(tmp_path / 'run')}
  )
  result = finetune.main(settings)
  printed = capsys.readouterr().out
  assert 'finished at step 12; nothing to train' in printed
  assert result == result_of(settings) == result_of(tuned)
  best = result['best_step']
  assert f'gender from {tuned.pretrained}, step {best}:\n' in printed
  scores = '  test        accuracy {accuracy:.4f}, macro_f1 {macro_f1:.4f}, auc'
  assert scores.format(**result['test']) in printed


@pytest.fixture(scope='module')
def few(tmp_path_factory, data_dir):
  """Five steps on 33 users from a random start; and what it printed."""
  settings = finetune_settings(
    tmp_path_factory.mktemp('few'), data_dir, train_users=33, num_steps=5
  )
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    finetune.main(settings)
  return settings, printed.getvalue()


def test_steps_override_epochs_and_the_last_one_is_validated(few):
  settings, _ = few
  found = lines(settings.workdir)
  # Epochs of two batches; there would be three of them.
  validated = [line['step'] for line in found if 'validation_auc' in line]
  assert validated == [2, 4, 5]
  assert result_of(settings)['best_step'] in validated


def test_a_random_start_needs_no_other_run(few):
  settings, printed = few
  assert result_of(settings)['pretrained'] == ''
  assert 'gender from a random start, step ' in printed
  assert 'knows' not in printed


def test_a_folder_of_another_run_is_refused_before_the_task_is_opened(
  tuned, tmp_path, monkeypatch
):
  monkeypatch.delattr(finetune, 'open_task')
  other = dataclasses.replace(tuned, seed=1)
  with pytest.raises(SettingsError, match='--seed was 0, is 1'):
    finetune.main(other)
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(SettingsError, match='is not the folder of a run'):
    finetune.main(dataclasses.replace(tuned, workdir=str(tmp_path)))


def test_dropout_may_differ_from_that_of_the_source(pretrained, data_dir):
  settings = finetune_settings(
    'unused', data_dir, pretrained=pretrained.workdir, dropout_rate=0.25
  )
  users = open_data(settings, task='gender')
  model, params = finetune.make_model(settings, users, jax.random.key(0))
  assert model['encoder'].dropout_rate == 0.25
  _, expected, _ = restore_encoder(pretrained.workdir)
  assert_same_bits(encoder_params(params), expected)


def halve_files(folder):
  for path in folder.rglob('*'):
    if path.is_file() and path.name != 'commit_success.txt':
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_source_missing_or_half_written_is_one_error(
  pretrained, tmp_path, data_dir
):
  def error_of(name):
    settings = finetune_settings(
      tmp_path / 'run', data_dir, pretrained=str(tmp_path / name)
    )
    with pytest.raises(CheckpointError) as error:
      finetune.main(settings)
    message = str(error.value)
    assert '\n' not in message
    assert str(tmp_path / name) in message
    return message

  assert 'no such folder' in error_of('absent')
  (tmp_path / 'empty').mkdir()
  assert 'holds no checkpoint' in error_of('empty')
  half = shutil.copytree(pretrained.workdir, tmp_path / 'half')
  halve_files(half / 'checkpoints' / '9')
  assert 'checkpoints/9: damaged' in error_of('half')
