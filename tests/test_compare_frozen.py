"""Frozen columns: users are encoded once, and probed for each split."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from test_similarity_command import ITEMS, save_run

from adaptssr_jax.checkpoint.encoders import restore_model
from adaptssr_jax.data import resplit
from adaptssr_jax.table.lookup import encoder_params
from experiments import compare, finetune
from experiments.comparison import frozen
from experiments.comparison.frozen import rows_of
from experiments.comparison.grid import Cell, Vectors, plan
from experiments.comparison.options import CompareSettings
from experiments.comparison.report import page_of
from experiments.comparison.significance import split_test
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.probing.probe import distinct_users
from experiments.run.data import open_data
from experiments.run.encoder import make_encoder
from tests.compare_stand_ins import (
  SHAPE,
  StandIns,
  changed,
  flag_files,
  settings_of,
  stand_ins,
)
from tests.tiny_runs import Interruption

__all__ = ['stand_ins']
MODES = ('frozen', 'fine_tuned', 'frozen_with_bag')


def settings_in(folder, data_dir):
  return settings_of(
    folder,
    data_dir,
    tasks=('gender', 'age', 'click'),
    methods=(
      'none',
      'random_encoder',
      'bag_of_items',
      'bag_of_items_whole',
      'pooled_items',
    ),
    modes=MODES,
    reference='pooled_items',
    splits=('0', '5'),
    probe_splits=3,
    train_shares=('1', '0.05'),
    seeds=('7',),
  )


@pytest.fixture
def settings(tmp_path, data_dir):
  return settings_in(tmp_path, data_dir)


class Whole(NamedTuple):
  """A comparison that several tests look at."""

  settings: CompareSettings
  results: dict[str, Any]
  made: StandIns


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data_dir):
  with pytest.MonkeyPatch.context() as monkeypatch:
    made = StandIns(monkeypatch)
    settings = settings_in(tmp_path_factory.mktemp('whole'), data_dir)
    return Whole(settings, compare.main(settings), made)


def test_vectors_are_encoded_once_for_all_splits_and_shares(whole):
  grid = compare.read_grid(whole.settings)
  runs = plan(grid)
  names = [one.name for one in runs]
  vectors = [one for one in runs if isinstance(one, Vectors)]
  assert [(one.method, one.task) for one in vectors] == [
    (method, task)
    for method in ('random_encoder', 'pooled_items')
    for task in ('gender', 'age', 'click')
  ]
  for one in vectors:
    first = f'cells/{one.method}/{one.task}/frozen/share_1/split_0/seed_7'
    assert names.index(one.name) < names.index(first)
  pretrained = names.index('pretrain/pooled_items/seed_7')
  assert pretrained < names.index(vectors[3].name)
  cells = [one for one in runs if isinstance(one, Cell)]
  # Of 2 models x 2 shares x 3 splits x 5 columns, of click but one.
  assert sum(one.is_frozen for one in cells) == 60
  # Fine-tuned: 2 models x 2 shares x 3 tasks x 2 splits. Of a bag, 2 x 2 x 4
  # splits, since both kinds of columns have the first.
  assert len(cells) == 60 + 24 + 2 * 16
  assert len(whole.made.calls) == len(runs) == len(cells) + 6 + 1
  assert len(whole.results['cells']) == len(cells)
  assert whole.results['cells'][0]['mode'] == 'fine_tuned'


def test_cells_have_the_flags_of_their_mode(whole):
  settings = whole.settings
  made = {one.workdir.split('/compare/')[1]: one for one in whole.made.settings}
  place = 'cells/pooled_items/gender'
  cell = made[f'{place}/frozen/share_0.05/split_2/seed_7']
  # 5 % of the 120 labels.
  assert (cell.split_seed, cell.train_users, cell.with_bag) == (2, 6, False)
  folder = f'{settings.workdir}/vectors/pooled_items/seed_7/gender'
  assert cell.vectors == folder
  cell = made[f'{place}/frozen_with_bag/share_1/split_0/seed_7']
  assert (cell.train_users, cell.with_bag, cell.max_length) == (0, True, 0)
  encoding = made[cell.vectors.split('/compare/')[1]]
  pretrained = f'{settings.workdir}/pretrain/pooled_items/seed_7'
  assert (encoding.pretrained, encoding.seed) == (pretrained, 7)
  random = made['vectors/random_encoder/seed_7/age']
  assert random.pretrained == ''
  assert random.encoder_fields() == SHAPE


def test_columns_are_those_of_all_modes(whole):
  results = whole.results
  columns = [
    (one['task'], one['mode'], one['share']) for one in results['summary']
  ]
  assert len(columns) == len(set(columns)) == 2 * 3 * 2 + 2 * 2
  # No bag is joined in a ranking.
  of_click = {mode for task, mode, _ in columns if task == 'click'}
  assert of_click == {'fine_tuned', 'frozen'}
  found = {
    column: one['methods']
    for column, one in zip(columns, results['summary'], strict=True)
  }
  assert list(found['gender', 'fine_tuned', 1.0]) == [
    'none',
    'bag_of_items',
    'bag_of_items_whole',
    'pooled_items',
  ]
  assert list(found['gender', 'frozen', 0.05]) == [
    'random_encoder',
    'bag_of_items',
    'bag_of_items_whole',
    'pooled_items',
  ]
  # The bag that is joined, by itself.
  joined = found['age', 'frozen_with_bag', 0.05]
  assert list(joined) == [
    'random_encoder',
    'bag_of_items_whole',
    'pooled_items',
  ]
  pooled = joined['pooled_items']
  assert pooled['p'] is None
  assert list(pooled['by_split']) == ['0', '1', '2']
  of_cells = [
    one['test']['accuracy']
    for one in results['cells']
    if (one['method'], one['task'], one['mode'], one['share'])
    == ('pooled_items', 'age', 'frozen_with_bag', 0.05)
  ]
  assert list(pooled['by_split'].values()) == of_cells
  random = joined['random_encoder']
  assert random['test'] == 'corrected resampled t'
  differences = [
    random['by_split'][split] - pooled['by_split'][split] for split in '012'
  ]
  # Of 120 training rows and 40 test rows.
  p = split_test(np.array(differences), test_per_train=1 / 3)
  assert random['p'] == pytest.approx(p)
  tuned = found['age', 'fine_tuned', 0.05]['none']
  assert tuned['test'] == 'bootstrap'
  assert tuned['runs'] == 2


def test_the_page_is_made_from_the_results_alone(whole):
  folder = pathlib.Path(whole.settings.workdir)
  page = (folder / 'results.md').read_text()
  results = json.loads((folder / 'results.json').read_text())
  assert page.startswith(page_of(results))
  assert 'gender accuracy, frozen + bag |' in page
  assert 'Splits in frozen columns: 3.' in page
  assert 'paired test against Pooled items' in page


def test_a_killed_comparison_reads_the_rest(
  stand_ins, whole, settings, tmp_path
):
  settings = changed(settings, tasks=('gender', 'age'), modes=('frozen',))
  # The 3rd and the 10th call of a run are frozen cells.
  for die_at in (3, 10):
    stand_ins.calls, stand_ins.die_at = [], die_at
    with pytest.raises(Interruption):
      compare.main(settings)
    assert '/frozen/' in stand_ins.calls[-1]
  stand_ins.calls, stand_ins.die_at = [], None
  results = compare.main(settings)
  # 2 models and 2 bags x 2 tasks x 2 shares x 3 splits, after the vectors.
  assert len(stand_ins.calls) == 48 + 4 + 1 - 2 - 9
  # As without interruption, and without the other columns.
  frozen_columns = [
    one
    for one in whole.results['summary']
    if one['mode'] == 'frozen' and one['task'] != 'click'
  ]
  assert results['summary'] == frozen_columns
  # More splits may be added.
  stand_ins.calls = []
  compare.main(changed(settings, probe_splits=4))
  assert len(stand_ins.calls) == 16


def test_vectors_of_another_pre_training_are_refused(
  stand_ins, settings, tmp_path
):
  settings = changed(settings, modes=('frozen',), methods=('pooled_items',))
  compare.main(settings)
  path = tmp_path / 'first_stage.flags'
  path.write_text(path.read_text().replace('0.002', '0.1'))
  with pytest.raises(
    SettingsError, match=r'^pretrain/pooled_items/seed_7 is fin'
  ):
    compare.main(settings)
  folder = tmp_path / 'compare' / 'pretrain' / 'pooled_items'
  (folder / 'seed_7.json').unlink()
  (folder / 'seed_7' / 'metrics.jsonl').unlink()
  words = r'^vectors/pooled_items/.*seed_7:learning_rate was 0.002, is 0.1'
  with pytest.raises(SettingsError, match=words):
    compare.main(settings)


def test_a_dry_run_lists_what_is_missing(stand_ins, settings, tmp_path, capsys):
  rows = ('random_encoder', 'pooled_items')
  whole = changed(settings, methods=rows, modes=('frozen',), tasks=('gender',))
  dry = changed(whole, dry_run=True)
  missing = compare.main(dry)['missing']
  grid = compare.read_grid(whole)
  assert missing == [one.name for one in plan(grid)]
  printed = capsys.readouterr().out
  assert '15 of 15 runs are missing' in printed
  assert 'their time can be estimated when some runs are finished' in printed
  assert not (tmp_path / 'compare').exists()
  few = changed(whole, methods=rows[:1], reference='none')
  compare.main(few)
  folder = tmp_path / 'compare'
  for path in (folder / 'cells').rglob('split_*/seed_7.json'):
    record = json.loads(path.read_text()) | {'seconds': 2.0}
    path.write_text(json.dumps(record))
  del stand_ins.calls[:]
  capsys.readouterr()
  missing = compare.main(dry)['missing']
  assert missing == [one.name for one in plan(grid)[7:]]
  printed = capsys.readouterr().out
  # 6 cells of 2 s; the vectors as before, and a stage as the average.
  line = 'pooled_items/gender/frozen/share_1/split_0/seed_7: about 0:00:02'
  assert line in printed
  assert '8 of 15 runs are missing: about 0:00:1' in printed
  assert 'which are of the same kind for 7 of them' in printed
  assert not stand_ins.calls
  # It refuses what the comparison would.
  flag_files(tmp_path)
  (folder / 'cells/random_encoder/gender/frozen/share_1/split_0').joinpath(
    'seed_7.json'
  ).write_text(json.dumps(record | {'flags': {}}))
  with pytest.raises(SettingsError, match='is finished with other flags'):
    compare.main(dry)


def test_users_are_kept_together_in_one_split_alone(settings):
  # What says whose rows they are is the name of the task.
  by_user = changed(settings, tasks=('click_by_user',), splits=('0',))
  with pytest.raises(SettingsError, match='take --probe_splits=1'):
    compare.main(by_user)


def test_no_bag_is_joined_in_a_ranking(settings):
  alone = changed(settings, modes=('frozen_with_bag',), tasks=('click',))
  with pytest.raises(SettingsError, match='no column for the ranking click'):
    compare.main(alone)


def test_every_split_finds_its_users(settings):
  for task in ('gender', 'click'):
    data = open_data(settings, task)
    users, _ = distinct_users(data)
    # In a ranking, a user who is in several splits is encoded once.
    assert len(users.items) == 200
    for seed in (0, 3):
      for part in resplit(data, seed).splits.values():
        for user, row in enumerate(rows_of(part, data)):
          assert users.user_id[row].tolist() == part.user_id[user].tolist()
          assert users.items[row].tolist() == part.items[user].tolist()
  assert sum(len(part.items) for part in data.splits.values()) > 200


@pytest.mark.parametrize(
  ('num_encoders', 'changes', 'tolerance'),
  [
    (1, {'task': 'click', 'split_seed': 3, 'train_users': 300}, 1e-6),
    (2, {'task': 'gender'}, 0.03),
  ],
)
def test_vectors_are_read_as_by_a_probe(
  tmp_path, data_dir, num_encoders, changes, tolerance
):
  first, *more = [
    # They know the items in another order.
    save_run(tmp_path / f'run {seed}', ITEMS[::-1], seed=seed)
    for seed in range(num_encoders)
  ]
  place = {'dataset': 'synthetic_users/tiny', 'data_dir': data_dir}
  source = place | {'pretrained': first, 'concatenate': tuple(more)}
  data = open_data(DataSettings(**place), changes['task'])
  vectors = frozen.VectorSettings(workdir=str(tmp_path / 'vectors'), **source)
  frozen.encode(vectors, data=data)
  cell = frozen.ProbeSettings(
    workdir=str(tmp_path / 'cell'), vectors=vectors.workdir, **place, **changes
  )
  read = frozen.probe_vectors(cell, data=data)
  probe = finetune.FinetuneSettings(
    workdir=str(tmp_path / 'probe'),
    mode='probe',
    batch_size=64,
    **source,
    **changes,
  )
  probed = finetune.main(probe)
  assert probed.get('concatenate', []) == more
  for name in ('validation', 'test'):
    assert read[name] == pytest.approx(probed[name], abs=tolerance)
  for name in {'ridge', 'C'} & {*read}:
    assert read[name] == probed[name]


def probe_of(tmp_path, data_dir, **changes):
  """The settings of a cell that reads the vectors in `tmp_path`."""
  return frozen.ProbeSettings(
    workdir=str(tmp_path / 'cell'),
    vectors=str(tmp_path),
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    **changes,
  )


def labels_of(data):
  """Those of all rows, in the order of `distinct_users`."""
  return np.concatenate([part.label for part in data.splits.values()])


@pytest.mark.parametrize('with_bag', [False, True])
@pytest.mark.parametrize(
  ('task', 'metric'), [('age', 'accuracy'), ('conversion', 'auc')]
)
def test_vectors_are_read_by_the_row(
  tmp_path, data_dir, task, metric, with_bag
):
  settings = probe_of(
    tmp_path, data_dir, task=task, with_bag=with_bag, split_seed=3
  )
  data = open_data(settings, task)
  # Vectors that are the label of the row.
  label = labels_of(data)
  ones = np.eye(len(data.vocabulary.labels), dtype=np.float32)
  np.savez(tmp_path / 'vectors.npz', vector=ones[label])
  found = frozen.probe_vectors(settings, data=data)
  assert found['test'][metric] == found['validation'][metric] == 1
  assert ('bag_weight' in found) == with_bag
  folder = tmp_path / 'cell'
  assert json.loads((folder / 'result.json').read_text()) == found
  with np.load(folder / 'predictions.npz') as written:
    test = resplit(data, 3).splits['test'].number
    assert written['example_id'].tolist() == test.tolist()
    assert written['label'].tolist() == label[test].tolist()


def test_few_labels_are_the_first_of_the_training_rows(tmp_path, data_dir):
  settings = probe_of(tmp_path, data_dir, train_users=5, split_seed=4)
  data = open_data(settings, 'gender')
  train = resplit(data, 4).splits['train']
  label = labels_of(data)
  # The other training rows say the opposite of their label.
  says = label.copy()
  says[train.number[5:]] = 1 - label[train.number[5:]]
  assert len(set(label[train.number[:5]])) == 2
  vector = says[:, None].astype(np.float32)
  np.savez(tmp_path / 'vectors.npz', vector=vector)
  found = frozen.probe_vectors(settings, data=data)
  assert found['test']['accuracy'] == found['validation']['accuracy'] == 1


@pytest.mark.parametrize('is_pretrained', [False, True])
def test_vectors_are_those_of_the_encoder(tmp_path, data_dir, is_pretrained):
  settings = frozen.VectorSettings(
    workdir=str(tmp_path / 'vectors'),
    dataset='synthetic_users/tiny',
    data_dir=data_dir,
    # Eight devices get 64.
    batch_size=60,
    buckets=1,
    **SHAPE,
  )
  data = open_data(settings, 'gender')
  items = data.vocabulary.items
  if is_pretrained:
    # It knows the items in another order.
    source = save_run(tmp_path / 'run', items[::-1], seed=3)
    settings = dataclasses.replace(settings, pretrained=source)
    encoder, params, known = restore_model(source)
  else:
    encoder, params = make_encoder(settings, items, jax.random.key(0))
    known = items
  vectors = frozen.encode(settings, data=data)
  with np.load(tmp_path / 'vectors' / 'vectors.npz') as found:
    assert np.array_equal(found['vector'], vectors)
  assert vectors.shape == (200, SHAPE['embed_dim'])
  users, _ = distinct_users(data)
  rows = users.items.padded(np.array([3, 150]), SHAPE['max_length'])
  number = {item: place for place, item in enumerate(known, 1)}
  numbers = np.array([0, *(number[item] for item in items)])
  variables = {'params': encoder_params(params)}
  expected = encoder.apply(variables, numbers[rows])
  assert vectors[[3, 150]] == pytest.approx(np.asarray(expected), abs=1e-5)
