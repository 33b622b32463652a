"""Processes that train one model together do what one process does."""

import dataclasses

import jax
import numpy as np
import pytest

from adaptssr_jax.checkpoint.encoders import restore_encoder
from experiments import embed, pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.process import DistributedSettings
from experiments.run.process import join_processes
from tests.processes import end, start_all
from tests.tiny_runs import lines, pretrain_settings, saved_steps

RUN = {
  'num_steps': 20,
  'batch_size': 16,
  'log_every': 1,
  # One program, which is soon compiled.
  'buckets': 1,
  'microbatch': 0,
}


def train(workdir, data_dir, *, processes=2, devices=2, **changes):
  settings = pretrain_settings(workdir, data_dir, **RUN | changes)
  flags = settings.to_flagfile().splitlines()
  return finish_all('pretrain', flags, processes=processes, devices=devices)


def finish_all(*args, **layout):
  """What each process printed."""
  return [end(process) for process in start_all(*args, **layout)]


def losses(workdir, name):
  return {line['step']: line[name] for line in lines(workdir) if name in line}


def assert_same_training(workdir, other):
  found, expected = losses(workdir, 'loss'), losses(other, 'loss')
  assert list(found) == list(expected) == list(range(1, 21))
  np.testing.assert_allclose(
    list(found.values()), list(expected.values()), atol=1e-4
  )
  found, expected = [
    losses(folder, 'validation_loss')[20] for folder in (workdir, other)
  ]
  assert found == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, data_dir):
  """This process of eight devices."""
  folder = tmp_path_factory.mktemp('alone')
  pretrain.main(pretrain_settings(folder, data_dir, **RUN))
  return folder


@pytest.fixture(scope='module')
def together(tmp_path_factory, data_dir):
  """Two processes of two devices, and what they printed."""
  folder = tmp_path_factory.mktemp('together')
  return folder, train(folder, data_dir)


@pytest.mark.slow
def test_two_processes_train_as_one(alone, together):
  folder, (first, second) = together
  assert_same_training(folder, alone)
  _, params, _ = restore_encoder(folder)
  _, expected, _ = restore_encoder(alone)
  # Half a step of Adam; there were 20.
  found, wanted = params['item_embedding'], expected['item_embedding']
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
  # One alone prints.
  assert first.endswith(f'pre-trained: {folder}\n')
  assert second == ''


@pytest.mark.slow
def test_a_run_goes_on_in_any_layout(alone, tmp_path, data_dir):
  rows = {'table_update': 'rows'}
  pretrain.main(
    pretrain_settings(tmp_path, data_dir, **RUN | {'num_steps': 6}, **rows)
  )
  assert saved_steps(tmp_path)[-1] == 6
  train(tmp_path, data_dir, num_steps=12, devices=1, shard_table=True, **rows)
  assert saved_steps(tmp_path)[-1] == 12
  pretrain.main(pretrain_settings(tmp_path, data_dir, **RUN, **rows))
  assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_give_the_same_vectors(together, tmp_path, data_dir):
  settings = embed.EmbedSettings(
    pretrained=str(together[0]),
    output=str(tmp_path / 'one.npz'),
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    batch_size=16,
    shard_table=True,
  )
  expected = np.load(embed.main(settings))
  settings = dataclasses.replace(settings, output=str(tmp_path / 'two.npz'))
  flags = settings.to_flagfile().splitlines()
  finish_all('embed', flags, processes=2, devices=2)
  found = np.load(settings.output)
  assert found['user_id'].tolist() == expected['user_id'].tolist()
  assert found['vector'].shape == (200, 8)
  np.testing.assert_allclose(found['vector'], expected['vector'], atol=1e-6)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'coordinator': 'host:1'}, 'without --num_processes and --process_id'),
    ({'process_id': 0}, '--process_id without --coordinator'),
    (
      {'coordinator': 'host', 'num_processes': 2, 'process_id': 0},
      'must be HOST:PORT, not host',
    ),
    (
      {'coordinator': 'host:1', 'num_processes': 2, 'process_id': 2},
      '--process_id must be below --num_processes=2, not 2',
    ),
    (
      {'coordinator': 'a:1', 'num_processes': 1, 'process_id': 0}
      | {'distributed': 'off'},
      '--distributed=off contradicts --coordinator',
    ),
  ],
)
def test_flags_that_do_not_fit(values, message):
  with pytest.raises(SettingsError, match=message):
    DistributedSettings(**values)


def test_a_process_that_is_told_of_no_others(monkeypatch):
  def initialize(*args, **settings):
    assert args == (None, None, None)
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(SettingsError, match='nothing says which processes'):
    join_processes(DistributedSettings(distributed='on'))
  join_processes(DistributedSettings())
