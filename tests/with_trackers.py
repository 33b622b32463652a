"""Tests with MLflow and W&B, which CI does not install; run them by hand.

pip install '.[mlflow,wandb]' && pytest tests/with_trackers.py
"""

import pytest

from experiments import pretrain
from tests.tiny_runs import Interruption, interrupt_at, lines, pretrain_settings


def train_twice(tmp_path, monkeypatch, name):
  """A run that dies after a step that no checkpoint has, and goes on."""
  settings = pretrain_settings(
    tmp_path / 'run',
    f'{tmp_path}/data',
    log_to=(name,),
    log_every=1,
    checkpoint_every=100,
  )
  with monkeypatch.context() as patch:
    interrupt_at(patch, 8)
    with pytest.raises(Interruption):
      pretrain.main(settings)
  pretrain.main(settings)
  return tmp_path / 'run'


def test_the_file_store_of_mlflow(tmp_path, monkeypatch):
  from mlflow import MlflowClient

  store = f'file://{tmp_path}/store'
  monkeypatch.setenv('MLFLOW_TRACKING_URI', store)
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  run = train_twice(tmp_path, monkeypatch, 'mlflow')
  client = MlflowClient(store)
  (found,) = client.search_runs(['0'])
  assert found.info.run_id == (run / 'mlflow_run').read_text()
  assert found.info.run_name == 'run'
  assert found.info.status == 'FINISHED'
  assert found.data.params['batch_size'] == '64'
  kept = {(line['step'], line['loss']) for line in lines(run) if 'loss' in line}
  # Step 7, which no checkpoint has, is logged twice, and equal.
  history = client.get_metric_history(found.info.run_id, 'loss')
  assert {(metric.step, metric.value) for metric in history} == kept
  assert len(history) == len(kept) + 1


def test_wandb_without_a_server(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  run = train_twice(tmp_path, monkeypatch, 'wandb')
  found = sorted(run.glob('wandb/offline-run-*'))
  name = (run / 'wandb_run').read_text()
  assert len(found) == 2
  assert all(path.name.endswith(f'-{name}') for path in found)
