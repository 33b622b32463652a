"""Several processes that train together give the results of one process."""

import dataclasses
import socket

import jax
import numpy as np
import pytest

from adaptssr_jax.checkpoint.encoders import restore_encoder
from experiments import embed, pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.process import DistributedSettings
from experiments.run.process import join_processes
from tests.processes import end, start, start_all
from tests.tiny_runs import lines, pretrain_settings, saved_steps

RUN = {
  'num_steps': 20,
  'batch_size': 16,
  'log_every': 1,
  # One program, which is soon compiled.
  'buckets': 1,
  'microbatch': 0,
  'table_update': 'rows',
}


def finish_all(module, settings, *, devices):
  """What each of two processes printed."""
  flags = settings.to_flagfile().splitlines()
  started = start_all(module, flags, processes=2, devices=devices)
  return [end(process) for process in started]


def losses(workdir, name):
  return {line['step']: line[name] for line in lines(workdir) if name in line}


@pytest.fixture(scope='module')
def alone(tmp_path_factory, data_dir):
  """This process of eight devices."""
  folder = tmp_path_factory.mktemp('alone')
  pretrain.main(pretrain_settings(folder, data_dir, **RUN))
  return folder


@pytest.fixture(scope='module')
def together(tmp_path_factory, data_dir):
  """Begun and ended as that, by two processes of two devices in between.

  And what they printed.
  """
  folder = tmp_path_factory.mktemp('together')

  def until(step, **changes):
    return pretrain_settings(
      folder, data_dir, **RUN | {'num_steps': step} | changes
    )

  pretrain.main(until(6))
  assert saved_steps(folder)[-1] == 6
  printed = finish_all('pretrain', until(12, shard_table=True), devices=2)
  assert saved_steps(folder)[-1] == 12
  pretrain.main(until(20))
  return folder, printed


@pytest.mark.slow
def test_a_run_of_any_processes_and_devices_is_the_same(alone, together):
  folder, (first, second) = together
  found, expected = losses(folder, 'loss'), losses(alone, 'loss')
  assert list(found) == list(expected) == list(range(1, 21))
  np.testing.assert_allclose(
    list(found.values()), list(expected.values()), atol=1e-4
  )
  found, expected = (losses(one, 'validation_loss') for one in (folder, alone))
  # Of the two processes, where an epoch ends, and of this one after them.
  for step in (12, 20):
    assert found[step] == pytest.approx(expected[step], abs=1e-4)
  _, params, _ = restore_encoder(folder)
  _, expected, _ = restore_encoder(alone)
  # Half a step of Adam; there were 20.
  found, wanted = params['item_embedding'], expected['item_embedding']
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
  # One alone prints.
  assert first.endswith(f'pre-trained: {folder}\n')
  assert second == ''


@pytest.mark.slow
def test_two_processes_give_the_same_vectors(together, tmp_path, data_dir):
  settings = embed.EmbedSettings(
    pretrained=str(together[0]),
    output=str(tmp_path / 'one.npz'),
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    batch_size=16,
    buckets=1,
    microbatch=0,
    shard_table=True,
  )
  expected = np.load(embed.main(settings))
  settings = dataclasses.replace(settings, output=str(tmp_path / 'two.npz'))
  finish_all('embed', settings, devices=2)
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
  with pytest.raises(SettingsError, match='the processes are not known'):
    join_processes(DistributedSettings(distributed='on'))
  join_processes(DistributedSettings())


@pytest.mark.parametrize('process', [0, 1])
def test_a_process_whose_peers_do_not_come_ends_with_one_error(process):
  with socket.create_server(('localhost', 0)) as server:
    port = server.getsockname()[1]
  flags = [f'--coordinator=localhost:{port}', '--num_processes=2']
  flags += [f'--process_id={process}', '--join_timeout=1']
  output = end(start('pretrain', flags, devices=1), code=1)
  told = [line for line in output.splitlines() if 'error' in line]
  assert len(told) == 1, output
  assert 'not all processes have joined within --join_timeout=1 s' in told[0]
