"""Pre-training as a command: its folder, interruptions and errors."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from test_logs import events, in_lines

from adaptssr_jax.checkpoint.encoders import restore_encoder
from adaptssr_jax.checkpoint.files import CheckpointError
from adaptssr_jax.data.prepared import batches
from adaptssr_jax.diagnostics import ViewSimilarities
from adaptssr_jax.objectives.views import views_objective
from experiments import pretrain
from experiments.flags.binder import SettingsError, from_flagfile
from experiments.pretraining import context, validation
from experiments.run import batches as run_batches
from experiments.run.workdir import opened_workdir
from tests.tiny_runs import (
  Interruption,
  assert_same_bits,
  assert_same_run,
  files,
  interrupt_at,
  lines,
  pretrain_settings,
  saved_state,
  saved_steps,
)


def test_a_run_leaves_its_folder(pretrained):
  written = files(pretrained.workdir)
  names = {name.split('/')[0] for name in written}
  (event_file,) = [name for name in names if name.startswith('events.')]
  names.remove(event_file)
  assert names == {
    'flags.txt',
    'dataset.txt',
    'metrics.jsonl',
    'vocabulary',
    'checkpoints',
  }
  path = f'{pretrained.workdir}/flags.txt'
  assert from_flagfile(pretrain.PretrainSettings, path) == pretrained
  items = [json.loads(line) for line in written['vocabulary'].splitlines()]
  assert items == [f'item_{number}' for number in range(1, 61)]
  assert saved_steps(pretrained.workdir) == [8, 9]


def test_metrics_are_a_line_every_so_many_steps_and_every_epoch(pretrained):
  ranked = {'loss', 'lambda', 'alignment', *ViewSimilarities._fields}
  spread = {'mean_cosine', 'uniformity', 'effective_rank'}
  names = {
    'train': {'step', *ranked},
    'validation': {'step', *(f'validation_{x}' for x in ranked | spread)},
  }
  found = lines(pretrained.workdir)
  kind = {
    'train': [line['step'] for line in found if line.keys() == names['train']],
    'validation': [
      line['step'] for line in found if line.keys() == names['validation']
    ],
  }
  assert kind == {'train': [2, 4, 6, 8, 9], 'validation': [3, 6, 9]}
  assert len(found) == 8
  for line in found:
    assert all(np.isfinite(value) for value in line.values())
  assert [line['step'] for line in found] == sorted(
    line['step'] for line in found
  )


def test_events_say_what_the_lines_say(pretrained):
  folder = pathlib.Path(pretrained.workdir)
  assert events(folder) == in_lines(folder)


def test_the_last_state_is_returned_and_saved(pretrained, capsys):
  state = pretrain.main(pretrained)
  saved = saved_state(pretrained.workdir)
  assert int(state.step) == 9
  assert_same_bits(state.params, saved['params'])
  assert len(jax.tree.leaves(saved['opt_state'])) == (
    2 * len(jax.tree.leaves(saved['params'])) + 1
  )


def test_a_finished_run_says_so_and_changes_nothing(pretrained, capsys):
  before = files(pretrained.workdir)
  pretrain.main(pretrained)
  assert 'finished at step 9; nothing to train' in capsys.readouterr().out
  assert files(pretrained.workdir) == before


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path, data_dir, num_steps=30, learning_rate=0.02, checkpoint_every=30
  )
  pretrain.main(settings)
  losses = [
    line['validation_loss']
    for line in lines(tmp_path)
    if 'validation_loss' in line
  ]
  assert losses[-1] < losses[0] - 0.02


def test_interrupted_and_resumed_is_uninterrupted(
  pretrained, tmp_path, data_dir, monkeypatch, capsys
):
  settings = pretrain_settings(tmp_path, data_dir)
  # Before anything is saved; with steps lost, whose lines must be cut; and
  # right after a checkpoint.
  for step in (2, 5, 2):
    with monkeypatch.context() as patch:
      interrupt_at(patch, step)
      with pytest.raises(Interruption):
        pretrain.main(settings)
  pretrain.main(settings)
  assert 'resumes at step 6 of 9' in capsys.readouterr().out
  assert_same_run(tmp_path, pretrained.workdir)


@pytest.fixture(scope='module')
def watched(tmp_path_factory, data_dir):
  """The folder of a run of six steps, its tracings of the loss, its users."""
  traced, seen = [], []

  def objective(*args, **settings):
    traced.append(settings)
    return views_objective(*args, **settings)

  def batch_at(users, step, **settings):
    batch = batches.batch_at(users, step, **settings)
    if settings['seed'] is not None:
      seen.extend(batch['example_id'][batch['where']].tolist())
    return batch

  folder = tmp_path_factory.mktemp('watched') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(context, 'views_objective', objective)
    patch.setattr(run_batches, 'batch_at', batch_at)
    pretrain.main(pretrain_settings(folder, data_dir, num_steps=6))
  return folder, traced, seen


def test_a_step_is_traced_once_and_sees_users_in_the_order_of_the_seed(watched):
  _, traced, seen = watched
  # Once to train, once to validate: compiling is slow.
  assert len(traced) == 2
  assert seen == [
    *batches.epoch_order(180, 0, 0),
    *batches.epoch_order(180, 0, 1),
  ]


def test_a_longer_run_goes_on_where_a_shorter_one_ended(
  watched, pretrained, tmp_path, data_dir, capsys
):
  # Six steps end an epoch, and the sixth is logged anyway.
  longer = shutil.copytree(watched[0], tmp_path / 'run')
  pretrain.main(pretrain_settings(longer, data_dir, num_steps=9))
  assert 'resumes at step 6 of 9' in capsys.readouterr().out
  assert_same_run(longer, pretrained.workdir)


def test_a_run_starts_from_the_encoder_of_another(
  pretrained, tmp_path, data_dir, capsys
):
  settings = pretrain_settings(
    tmp_path / 'run',
    data_dir,
    init_from=pretrained.workdir,
    embed_dim=None,
    num_steps=1,
  )
  pretrain.main(settings)
  assert 'knows all 60 items' in capsys.readouterr().out
  encoder, params, _ = restore_encoder(tmp_path / 'run')
  source, expected, _ = restore_encoder(pretrained.workdir)
  assert encoder == source
  jax.tree.map(
    # One step of Adam goes as far as the learning rate, 2e-4.
    lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4),
    params,
    expected,
  )


def test_masked_items_warm_start_the_ranking(tmp_path, data_dir):
  warm = pretrain_settings(
    tmp_path / 'warm',
    data_dir,
    objective=('masked_items',),
    sampled_items=5,
    num_steps=3,
  )
  pretrain.main(warm)
  logged = lines(warm.workdir)
  # Among all items alone it is an accuracy.
  assert 'accuracy' not in logged[0]
  assert 'validation_accuracy' in logged[-1]
  # The bias of the masked items is left behind.
  assert set(saved_state(warm.workdir)['params']) == {
    'table',
    'encoder',
    'head',
  }
  settings = pretrain_settings(
    tmp_path / 'run', data_dir, init_from=warm.workdir, num_steps=1
  )
  pretrain.main(settings)
  assert set(saved_state(settings.workdir)['params']) == {'table', 'encoder'}


def equally_good(state, **_):
  """A validation that finds no epoch better than another."""
  return {'validation_loss': 0.5}, -0.5


def test_a_run_without_patience_left_stops_and_stays_stopped(
  tmp_path, data_dir, capsys, monkeypatch
):
  monkeypatch.setattr(validation, 'validate', equally_good)
  settings = pretrain_settings(
    tmp_path, data_dir, num_steps=0, num_epochs=9, patience=2
  )
  state = pretrain.main(settings)
  # The best of equals is the first, and it is what is returned.
  assert int(state.step) == 3
  assert 'stops at step 9; validation was best at step 3' in (
    capsys.readouterr().out
  )
  before = files(tmp_path)
  assert int(pretrain.main(settings).step) == 3
  assert files(tmp_path) == before
  more = dataclasses.replace(settings, patience=3)
  pretrain.main(more)
  assert lines(tmp_path)[-1]['step'] == 12


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'batch_size': 20}, r'--batch_size: .* 8 devices: take 16 or 24'),
    ({'dataset': 'movielens'}, r"--dataset: no 'movielens'; did you mean"),
    ({'dataset': 'synthetic_users/tin'}, r"users/tiny'\?.*users/quickstart"),
    ({'dataset': 'nothing/like'}, r'There are: synthetic_users, movielens'),
    ({'dataset': 'user_tables'}, r'needs --events=FILE'),
    ({'events': ('log.csv',)}, r'is for --dataset=user_tables, not for'),
    ({'where': 'true'}, r'--where is for --dataset=user_tables, not for'),
    ({'time_column': 't'}, r'--time_column is for --dataset=user_tables'),
    ({'beam': True}, r'--beam is for --dataset=ttl or user_tables, not'),
    ({'data_dir': '/dev/null/data'}, r'--data_dir=/dev/null/data cannot be'),
    ({'fusion': 'both'}, r'--fusion must be adaptive, batch_mean or'),
    (
      {'objective': ('coserec',), 'num_similar': 10**9},
      r'--num_similar=1000000000 is more than the 60 items',
    ),
    ({'num_heads': 3}, r'num_heads must divide embed_dim'),
  ],
)
def test_bad_input_is_refused(tmp_path, data_dir, changes, words):
  with pytest.raises(SettingsError, match=words):
    pretrain.main(
      pretrain_settings(tmp_path / 'run', **{'data_dir': data_dir} | changes)
    )
  # The folder is still good for a run with the mistake mended.
  with opened_workdir(pretrain_settings(tmp_path / 'run', data_dir)):
    pass


def test_other_settings_are_refused_before_anything_is_done(
  pretrained, data_dir, capsys
):
  other = pretrain_settings(pretrained.workdir, data_dir, crop_ratio=0.5)
  before = files(pretrained.workdir)
  with pytest.raises(SettingsError, match=r'--crop_ratio was 0\.4, is 0\.5'):
    pretrain.main(other)
  assert files(pretrained.workdir) == before


def test_flags_that_contradict_the_source_are_refused(
  pretrained, tmp_path, data_dir
):
  settings = pretrain_settings(
    tmp_path, data_dir, init_from=pretrained.workdir, embed_dim=16
  )
  with pytest.raises(SettingsError, match=r'--embed_dim=16 contradicts .*8'):
    pretrain.main(settings)


def test_a_source_that_is_none_is_refused(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path / 'run', data_dir, init_from=str(tmp_path / 'absent')
  )
  with pytest.raises(CheckpointError, match='absent: no such folder'):
    pretrain.main(settings)
  assert not list(tmp_path.iterdir())
