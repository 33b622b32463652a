"""A comparison whose runs return numbers without any training."""

import json
import zlib

import numpy as np
import pytest

from adaptssr_jax.data import resplit
from experiments import compare
from experiments.comparison import commands, report
from experiments.comparison.options import CompareSettings
from experiments.run.data import open_data
from experiments.run.workdir import opened_workdir
from tests.tiny_runs import Interruption

SHAPE = {'max_length': 6, 'embed_dim': 8, 'num_layers': 1}


class StandIns:
  """Counts what is made; the outcome depends on the flags alone."""

  def __init__(self, monkeypatch):
    self.calls = []
    self.settings = []
    self.die_at = None
    monkeypatch.setattr(commands.pretrain, 'main', self.pretrain)
    monkeypatch.setattr(commands.finetune, 'main', self.finetune)
    monkeypatch.setattr(commands.baselines, 'main', self.baseline)
    monkeypatch.setattr(commands.frozen, 'encode', self.encode)
    monkeypatch.setattr(commands.frozen, 'probe_vectors', self.probe)
    # Nothing of theirs is compiled, and to look for it takes seconds; so do
    # pictures.
    monkeypatch.setattr(compare, 'forget_compiled', lambda: None)
    monkeypatch.setattr(report, 'draw_all', lambda *_: None)

  def pretrain(self, settings):
    folder = self._start(settings)
    steps = settings.num_steps or 10 + settings.seed
    lines = [{'step': 5, 'validation_loss': 0.5}, {'step': steps, 'loss': 0.1}]
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (folder / 'metrics.jsonl').write_text(text)

  def finetune(self, settings):
    self._cell(settings, settings.seed)

  def baseline(self, settings):
    self._cell(settings, None)

  def encode(self, settings, *, data):
    del data
    self._start(settings)

  def probe(self, settings, *, data):
    # Vectors are in vectors/METHOD/seed_N/TASK: the seed is of pre-training.
    *_, seed, task = settings.vectors.split('/')
    assert task == settings.task
    assert task in data.name
    self._cell(settings, seed)

  def _cell(self, settings, seed):
    folder = self._start(settings)
    data = resplit(open_data(settings, settings.task), settings.split_seed)
    test = data.splits['test'].number
    count = len(test)
    method = settings.workdir.split('/cells/')[1].split('/')[0]
    place = f'{method} {settings.task} {settings.split_seed} {seed}'
    rng = np.random.default_rng(zlib.crc32(place.encode()))
    if data.kind == 'ranking':
      columns = {'rank': rng.integers(1, 30, count)}
      values = np.where(
        columns['rank'] <= 10, 1 / np.log2(columns['rank'] + 1), 0
      )
      scores = {'ndcg@10': float(values.mean())}
    else:
      share = 0.3 if method == 'none' else 0.7
      columns = {'correct': (rng.random(count) < share).astype(int)}
      scores = {'accuracy': float(columns['correct'].mean())}
    np.savez(folder / 'predictions.npz', example_id=test, **columns)
    result = {'validation': scores, 'test': scores}
    if seed is not None:
      result['best_step'] = 40 + getattr(settings, 'seed', 0)
    (folder / 'result.json').write_text(json.dumps(result))

  def _start(self, settings):
    self.settings.append(settings)
    self.calls.append('/'.join(settings.workdir.split('/')[-6:]))
    with opened_workdir(settings) as folder:
      if len(self.calls) == self.die_at:
        raise Interruption
    return folder


def flag_files(folder, *, learning_rate=0.001):
  """Small ones: the shape, and what the objective must be."""
  shape = ''.join(f'--{name}={value}\n' for name, value in SHAPE.items())
  texts = {
    'warm_start': f'{shape}--objective=masked_items\n',
    'pretrain': f'--learning_rate={learning_rate}\n',
    'first_stage': f'{shape}--objective=pooled_items\n--learning_rate=0.002\n',
    'last_stage': '--objective=pooled_items,adaptssr\n--learning_rate=0.0003\n',
    'joint': '--objective=pooled_items,adaptssr\n',
    'classification': '--num_epochs=2\n--patience=3\n',
  }
  paths = {name: folder / f'{name}.flags' for name in texts}
  for name, text in texts.items():
    paths[name].write_text(text)
  return {name: str(path) for name, path in paths.items()}


def settings_of(tmp_path, data_dir, **changes):
  fields = {
    'workdir': str(tmp_path / 'compare'),
    'data_dir': data_dir,
    'dataset': 'synthetic_users/tiny',
    'tasks': ('gender', 'click'),
    'methods': ('none', 'last_item', 'masked_items', 'adaptssr'),
    'seeds': ('0', '5'),
    'splits': ('0', '2'),
    **flag_files(tmp_path),
  }
  return CompareSettings(**fields | changes)


def changed(settings, **changes):
  return type(settings)(**{**settings.__dict__, **changes})


@pytest.fixture
def stand_ins(monkeypatch):
  return StandIns(monkeypatch)


@pytest.fixture
def settings(tmp_path, data_dir):
  return settings_of(tmp_path, data_dir)
