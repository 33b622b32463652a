"""Vectors of several encoders, side by side."""

import dataclasses
import pathlib

import numpy as np
import pytest
from test_similarity_command import ITEMS, save_run

from experiments import compare, embed, finetune
from experiments.comparison.frozen import VectorSettings, encode, histories_of
from experiments.comparison.grid import Pretraining, Vectors, plan
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import with_defaults
from experiments.run.data import open_data
from tests.compare_stand_ins import (
  changed,
  flag_files,
  settings_of,
  stand_ins,
)
from tests.tiny_runs import finetune_settings

__all__ = ['stand_ins']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two encoders; the second knows the items in another order."""
  folder = tmp_path_factory.mktemp('runs')
  return (
    save_run(folder / 'first', ITEMS, 0),
    save_run(folder / 'second', ITEMS[::-1], 1),
  )


@pytest.fixture(scope='module')
def settings(tmp_path_factory, data_dir, runs):
  """Of writing the vectors of both."""
  return embed.EmbedSettings(
    pretrained=runs[0],
    beside=runs[1:],
    output=str(tmp_path_factory.mktemp('beside') / 'both.npz'),
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    batch_size=64,
    buckets=1,
    microbatch=0,
  )


@pytest.fixture(scope='module')
def alone(settings, runs, tmp_path_factory):
  """The files of each."""
  folder, files = tmp_path_factory.mktemp('alone'), []
  for number, run in enumerate(runs):
    path = folder / f'{number}.npz'
    one = {'pretrained': run, 'beside': (), 'output': str(path)}
    embed.main(dataclasses.replace(settings, **one))
    files.append(dict(np.load(path)))
  return files


def test_a_vector_has_the_numbers_of_each_encoder(settings, alone):
  both = np.load(embed.main(settings))
  first, second = (found['vector'] for found in alone)
  assert np.abs(first - second).max() > 0.1
  np.testing.assert_array_equal(both['user_id'], alone[1]['user_id'])
  np.testing.assert_array_equal(
    both['vector'], np.concatenate([first, second], axis=1)
  )


def test_vectors_of_items_are_of_one_run(settings, tmp_path):
  items = str(tmp_path / 'items.npz')
  with pytest.raises(SettingsError, match='--item_vectors is of one run'):
    embed.main(dataclasses.replace(settings, item_vectors=items))


def test_a_probe_reads_them_as_a_comparison_does(runs, data_dir, tmp_path):
  probing = finetune_settings(
    tmp_path / 'probe',
    data_dir,
    mode='probe',
    pretrained=runs[0],
    beside=runs[1:],
    learning_rate=None,
    dropout_rate=None,
  )
  result = finetune.main(probing)
  assert result['beside'] == [runs[1]]
  data = open_data(probing, 'gender')
  histories = histories_of(data)
  vectors = encode(
    VectorSettings(
      workdir=str(tmp_path / 'vectors'),
      pretrained=runs[0],
      beside=runs[1:],
      dataset='synthetic_users/tiny',
      data_dir=data_dir,
    ),
    data=data,
    histories=histories,
  )
  assert vectors.shape == (len(histories.order), 16)
  alone = finetune.main(
    dataclasses.replace(probing, beside=(), workdir=str(tmp_path / 'alone'))
  )
  assert 'beside' not in alone
  assert alone['validation'] != result['validation']


def test_only_a_probe_reads_several_encoders(runs):
  full = finetune.FinetuneSettings(pretrained=runs[0], beside=runs[1:])
  with pytest.raises(SettingsError, match='--beside is for --mode=probe'):
    with_defaults(full)


def test_a_comparison_makes_both_runs_first(tmp_path, data_dir, stand_ins):
  settings = settings_of(
    tmp_path,
    data_dir,
    tasks=('gender', 'click'),
    methods=(),
    beside=('joint sasrec',),
    modes=('frozen',),
    reference='none',
    probe_splits=2,
    seeds=('7',),
    **flag_files(tmp_path),
  )
  made = plan(compare.read_grid(settings))
  stages = [one.method for one in made if isinstance(one, Pretraining)]
  assert stages == ['joint', 'sasrec']
  (vectors,) = [one for one in made if isinstance(one, Vectors)]
  # Of two tasks and two splits each.
  assert len(made) == 2 + 1 + 4
  compare.main(settings)
  (encoding,) = [
    one for one in stand_ins.settings if isinstance(one, VectorSettings)
  ]
  joint, sasrec = (f'{settings.workdir}/{one.name}' for one in made[:2])
  assert (encoding.pretrained, encoding.beside) == (joint, (sasrec,))
  # What it was made with has the flags of both.
  text = pathlib.Path(f'{settings.workdir}/{vectors.name}.json').read_text()
  assert all(f'pretrain/{name}/seed_7:objective' in text for name in stages)
  count = len(stand_ins.calls)
  compare.main(settings)
  assert len(stand_ins.calls) == count
  for changes, words in (
    ({'modes': ('frozen', 'fine_tuned')}, 'gender in --modes=fine_tuned: lea'),
    ({'beside': ('joint',)}, '--beside=joint: give the names of two'),
    ({'beside': ('joint bag_svd',)}, 'bag_svd is not pre-trained'),
    ({'beside': ('joint sas',)}, '--beside=joint sas: .*sasrec'),
  ):
    with pytest.raises(SettingsError, match=words):
      compare.main(changed(settings, **changes))
