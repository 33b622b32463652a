"""Vectors of several encoders, concatenated."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from test_similarity_command import ITEMS, save_run

from experiments import compare, embed, finetune
from experiments.comparison import report
from experiments.comparison.frozen import VectorSettings
from experiments.comparison.grid import Pretraining, Vectors, plan
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import with_defaults
from tests.compare_stand_ins import (
  changed,
  flag_files,
  settings_of,
  stand_ins,
)
from tests.user_table_files import write

__all__ = ['stand_ins']
DATA = 'synthetic_users/tiny'


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two encoders, of which the first does not know half of the items."""
  folder = tmp_path_factory.mktemp('runs')
  return (
    save_run(folder / 'first', ITEMS[30:], 0, max_length=6, embed_dim=8),
    save_run(
      folder / 'second',
      ITEMS,
      1,
      max_length=9,
      embed_dim=4,
      readout='pooled,last',
    ),
  )


@pytest.fixture(scope='module')
def settings(data_dir):
  return embed.EmbedSettings(
    dataset=DATA, data_dir=data_dir, batch_size=64, buckets=1, microbatch=0
  )


def vectors_of(settings, path, runs):
  """The file that the command writes for some runs."""
  first, *more = runs
  changes = {'pretrained': first, 'concatenate': tuple(more)}
  found = embed.main(dataclasses.replace(settings, output=str(path), **changes))
  return dict(np.load(found))


def test_a_vector_has_the_numbers_of_each_encoder(settings, runs, tmp_path):
  both = vectors_of(settings, tmp_path / 'both.npz', runs)
  assert both['vector'].shape == (200, 8 + 2 * 4)
  parts = np.split(both['vector'], [8], axis=1)
  for number, run in enumerate(runs):
    alone = vectors_of(settings, tmp_path / f'{number}.npz', [run])
    np.testing.assert_array_equal(alone['user_id'], both['user_id'])
    np.testing.assert_array_equal(alone['vector'], parts[number])
    assert len(np.unique(alone['vector'], axis=0)) > 100


def test_an_item_that_one_encoder_knows_is_read_by_it(settings, runs, tmp_path):
  events = [
    (f'user {row}', item, place)
    for row in range(6)
    for place, item in enumerate([*ITEMS[row : row + 3], ITEMS[40], 'new'])
  ]
  table = write(tmp_path / 'e.csv', events, ('user_id', 'item_id', 'time'))
  new = dataclasses.replace(settings, dataset='', events=(str(table),))
  both = vectors_of(new, tmp_path / 'both.npz', runs)
  alone = vectors_of(new, tmp_path / 'second.npz', runs[1:])
  np.testing.assert_array_equal(both['vector'][:, 8:], alone['vector'])
  assert len(np.unique(alone['vector'], axis=0)) == 6


def test_what_does_not_go_with_several_encoders(runs, settings, tmp_path):
  full = finetune.FinetuneSettings(pretrained=runs[0], concatenate=runs[1:])
  with pytest.raises(SettingsError, match='--concatenate is for --mode=probe'):
    with_defaults(full)
  one = dataclasses.replace(full, mode='probe', pretrained='')
  with pytest.raises(SettingsError, match='give --pretrained=DIR too'):
    with_defaults(one)
  items = dataclasses.replace(
    settings,
    pretrained=runs[0],
    concatenate=runs[1:],
    item_vectors=str(tmp_path / 'items.npz'),
  )
  with pytest.raises(SettingsError, match='--item_vectors is for a single run'):
    embed.main(items)


def test_a_comparison_makes_both_runs_first(
  tmp_path, data_dir, stand_ins, monkeypatch
):
  drawn = []
  monkeypatch.setattr(
    report, 'draw_all', lambda *args: drawn.append(list(args[2]))
  )
  settings = settings_of(
    tmp_path,
    data_dir,
    tasks=('gender', 'click'),
    methods=(),
    concatenated=('joint sasrec',),
    modes=('frozen',),
    reference='none',
    probe_splits=2,
    seeds=('7',),
    **flag_files(tmp_path),
  )
  made = plan(compare.read_grid(settings))
  stages = [one.method for one in made if isinstance(one, Pretraining)]
  assert stages == ['joint', 'sasrec']
  vectors = [one for one in made if isinstance(one, Vectors)]
  assert [one.task for one in vectors] == ['gender', 'click']
  # Each task has two splits.
  assert len(made) == 2 + 2 + 4
  compare.main(settings)
  encodings = [
    one for one in stand_ins.settings if isinstance(one, VectorSettings)
  ]
  joint, sasrec = (f'{settings.workdir}/{one.name}' for one in made[:2])
  for encoding in encodings:
    assert (encoding.pretrained, encoding.concatenate) == (joint, (sasrec,))
  # What it was made with has the flags of both.
  folder = pathlib.Path(settings.workdir)
  record = json.loads((folder / f'{vectors[0].name}.json').read_text())
  for name in stages:
    assert f'pretrain/{name}/seed_7:objective' in record['flags']
  assert drawn == [['joint_and_sasrec']]
  page = (folder / 'results.md').read_text()
  assert '\n| Pooled items and AdaptSSR, concatenated with SASRec' in page
  count = len(stand_ins.calls)
  compare.main(settings)
  assert len(stand_ins.calls) == count


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'modes': ('frozen', 'fine_tuned')}, 'gender in --modes=fine_tuned: lea'),
    ({'concatenated': ('joint',)}, '--concatenated=joint: give several meth'),
    (
      {'concatenated': ('joint joint joint',)},
      'named 3 times needs as many seeds',
    ),
    ({'concatenated': ('joint bag_svd',)}, 'bag_svd is not pre-trained'),
    ({'concatenated': ('joint sas',)}, '--concatenated=joint sas: .*sasrec'),
  ],
)
def test_bad_rows_are_refused(tmp_path, data_dir, changes, words):
  settings = settings_of(
    tmp_path,
    data_dir,
    tasks=('gender',),
    methods=(),
    concatenated=('joint sasrec',),
    modes=('frozen',),
  )
  with pytest.raises(SettingsError, match=words):
    compare.main(changed(settings, **changes))
