"""Trackers that receive the metrics of a run by --log_to.

MLflow and W&B are stand-ins here: see with_trackers.py for the real ones.
"""

import contextlib
import sys
import types

import pytest

from experiments import pretrain
from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.run import logs
from experiments.run.logs import MetricsLog
from tests.tiny_runs import lines, pretrain_settings

LINES = [(2, {'loss': 0.5}), (3, {'ndcg@10': 0.25, 'loss': 0.75})]


class Own:
  """A tracker of somebody else."""

  told = None

  def __init__(self, workdir, flags, resume_at):
    Own.told = [(workdir.name, flags['seed'], resume_at)]

  def write(self, step, values):
    self.told.append((step, values))

  def close(self):
    self.told.append('closed')


class Failing(Own):
  def write(self, step, values):
    raise ConnectionError('no server')


def log_to(folder, *names, resume_at=0):
  settings = RunSettings(log_to=names)
  log = MetricsLog(folder, settings, resume_at=resume_at)
  for step, values in LINES:
    log.write(step, values)
  log.close()


def test_a_tracker_of_your_own_is_told_all(tmp_path):
  log_to(tmp_path, f'{__name__}:Own', resume_at=1)
  assert Own.told == [(tmp_path.name, '0', 1), *LINES, 'closed']
  assert not list(tmp_path.glob('events.*'))


def test_a_run_goes_on_where_a_tracker_fails(tmp_path, capsys):
  names = (f'{__name__}:Failing', f'{__name__}:Own')
  log_to(tmp_path, *names, 'tensorboard')
  assert capsys.readouterr().out == (
    f'--log_to={names[0]} fails and is not used any more: no server\n'
  )
  assert Own.told[1:] == [*LINES, 'closed']
  assert [line['step'] for line in lines(tmp_path)] == [2, 3]
  assert len(list(tmp_path.glob('events.*'))) == 1


def test_the_other_processes_tell_no_tracker(tmp_path, monkeypatch):
  monkeypatch.setattr(logs, 'is_main_process', lambda: False)
  Own.told = None
  settings = RunSettings(log_to=(f'{__name__}:Own',))
  MetricsLog(tmp_path, settings, resume_at=0).write(1, {'loss': 1.0})
  assert Own.told is None


def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
  calls = []

  def start_run(run_id, run_name):
    calls.append(('start', run_id, run_name))
    info = types.SimpleNamespace(run_id=run_id or 'id')
    return types.SimpleNamespace(info=info)

  mlflow = types.SimpleNamespace(
    start_run=start_run,
    log_params=lambda flags: calls.append(('params', flags['seed'])),
    log_metrics=lambda values, step, run_id: calls.append(
      (step, values, run_id)
    ),
    end_run=lambda status: calls.append(status),
  )
  monkeypatch.setitem(sys.modules, 'mlflow', mlflow)
  told = [
    (2, {'loss': 0.5}, 'id'),
    (3, {'ndcg_at_10': 0.25, 'loss': 0.75}, 'id'),
    'FINISHED',
  ]
  log_to(tmp_path, 'mlflow')
  assert calls == [('start', None, tmp_path.name), ('params', '0'), *told]
  calls.clear()
  log_to(tmp_path, 'mlflow')
  assert calls == [('start', 'id', tmp_path.name), *told]
  settings = RunSettings(log_to=('mlflow',))
  log = MetricsLog(tmp_path, settings, resume_at=0)
  with pytest.raises(KeyboardInterrupt), contextlib.closing(log):
    raise KeyboardInterrupt
  assert calls[-1] == 'KILLED'


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
  calls = []

  def init(id, resume, name, dir, config):
    calls.append((id, resume, name, dir, config['seed']))
    return types.SimpleNamespace(
      id=id or 'id',
      log=lambda values, step: calls.append((step, values)),
      finish=lambda exit_code: calls.append(exit_code),
    )

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  for known in (None, 'id'):
    calls.clear()
    log_to(tmp_path, 'wandb')
    begin = (known, 'allow', tmp_path.name, tmp_path, '0')
    assert calls == [begin, *LINES, 0]


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('mlflow', r"--log_to=mlflow: .*pip install '\.\[mlflow\]'"),
    ('wandb', r"--log_to=wandb: .*pip install '\.\[wandb\]'"),
    (
      'wanb',
      '--log_to=wanb must be one of tensorboard, mlflow, wandb, or MODULE',
    ),
    ('tests.test_trackers:no', '--log_to=.*:no: .*no.*; give MODULE:FUNCTION'),
    ('no_module:f', '--log_to=no_module:f: .*; give MODULE:FUNCTION'),
  ],
)
def test_what_is_not_there_is_told_before_anything(
  tmp_path, monkeypatch, name, message
):
  for package in ('mlflow', 'wandb'):
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, package, None)
  settings = pretrain_settings(
    tmp_path / 'run', f'{tmp_path}/data', log_to=(name,)
  )
  with pytest.raises(SettingsError, match=message):
    pretrain.main(settings)
  assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_started_is_named(tmp_path):
  with pytest.raises(SettingsError, match='--log_to=math:sin cannot be start'):
    log_to(tmp_path, 'math:sin')
