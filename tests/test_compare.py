"""The comparison as a command, with runs that do not train."""

import json
import shutil

import jax
import pytest

from experiments import compare
from experiments.comparison import methods, setup
from experiments.comparison.grid import Cell, Pretraining, Vectors, plan
from experiments.comparison.options import CompareSettings
from experiments.comparison.rows import choose_methods
from experiments.flags.binder import from_flagfile
from experiments.flags.finetuning import FinetuneSettings
from experiments.run.process import forget_compiled
from tests.compare_stand_ins import (
  SHAPE,
  changed,
  settings,
  settings_of,
  stand_ins,
)
from tests.tiny_runs import ENCODER, ROOT, Interruption

__all__ = ['settings', 'stand_ins']


def results_of(settings):
  return (ROOT / settings.workdir / 'results.json').read_bytes()


def test_every_run_is_made_once_after_those_it_needs(
  stand_ins, settings, capsys
):
  compare.main(settings)
  grid = compare.read_grid(settings)
  runs = plan(grid)
  # 2 stages x 2 seeds; 3 models x 2 tasks x 2 splits x 2 seeds; 1 x 2 splits.
  assert len(runs) == len(set(runs)) == 4 + 24 + 2
  assert len(stand_ins.calls) == 30
  names = [one.name for one in runs]
  assert names[0] == 'cells/none/gender/share_1/split_0/seed_0'
  for stage, before in (('adaptssr', 'masked_items'),):
    for seed in (0, 5):
      first, second = (
        names.index(f'pretrain/{name}/seed_{seed}') for name in (before, stage)
      )
      assert (
        first
        < second
        < names.index(f'cells/{stage}/click/share_1/split_2/seed_{seed}')
      )
  printed = capsys.readouterr().out
  assert f'[30/30] {names[-1]}: 0 s; about 0:00:00 left' in printed
  # What is made already takes no time, whatever it took.
  folder = grid.folder / names[-3]
  record = folder.with_name(f'{folder.name}.json')
  record.unlink()
  shutil.rmtree(folder)
  for one in set(names) - {names[-3]}:
    path = grid.folder / f'{one}.json'
    made = json.loads(path.read_text()) | {'seconds': 100.0}
    path.write_text(json.dumps(made))
  compare.main(settings)
  assert len(stand_ins.calls) == 31
  printed = capsys.readouterr().out
  assert f'[28/30] {names[-3]}: 0 s; about 0:00:00 left' in printed


def test_runs_have_the_flags_of_their_method(stand_ins, settings):
  everything = changed(
    settings,
    methods=tuple(methods.METHODS),
    variant=(
      'adaptssr --fusion=batch_mean',
      'pooled_items --slice_lengths=3,9 --embed_dim 12 --num_epochs=4',
    ),
    rhos=('0.1',),
    augmentation_pairs=True,
    seeds=('7',),
    splits=('3',),
    tasks=('gender',),
    train_shares=('0.5',),
  )
  results = compare.main(everything)
  assert results['flags']['rhos'] == '0.1'
  assert results['pretraining'][0] == {
    'method': 'masked_items',
    'seed': 7,
    'steps': 17,
    'best': {'step': 5, 'validation_loss': 0.5},
  }
  made = {one.workdir.split('/compare/')[1]: one for one in stand_ins.settings}
  cell = made['cells/none/gender/share_0.5/split_3/seed_7']
  assert (cell.seed, cell.split_seed, cell.train_users) == (7, 3, 60)
  # On half of the labels twice the two epochs of the file, and its patience.
  assert (cell.task, cell.pretrained, cell.num_epochs) == ('gender', '', 4)
  assert cell.patience == 6
  # The same encoder from a random start.
  assert cell.encoder_fields() == SHAPE
  cell = made['cells/adaptssr/gender/share_0.5/split_3/seed_7']
  folder = everything.workdir + '/pretrain'
  assert cell.pretrained == f'{folder}/adaptssr/seed_7'
  stages = {
    name.split('/')[1]: one
    for name, one in made.items()
    if name.startswith('pretrain/')
  }
  assert stages['masked_items'].init_from == ''
  assert stages['masked_items'].encoder_fields() == SHAPE
  assert stages['adaptssr'].init_from == f'{folder}/masked_items/seed_7'
  assert stages['adaptssr_cold'].init_from == ''
  assert stages['adaptssr_cold'].encoder_fields() == SHAPE
  longer = stages['masked_items_longer']
  assert (longer.objective, longer.num_steps) == (('masked_items',), 17)
  assert longer.init_from == f'{folder}/masked_items/seed_7'
  assert stages['adaptssr+fusion=batch_mean'].fusion == 'batch_mean'
  wider = stages['pooled_items+embed_dim=12+num_epochs=4+slice_lengths=3-9']
  assert wider.encoder_fields() == SHAPE | {'embed_dim': 12}
  assert wider.slice_lengths == ('3', '9')
  assert (wider.num_epochs, wider.num_steps) == (4, 0)
  assert stages['pooled_items'].encoder_fields() == SHAPE
  assert stages['adaptssr_mask'].augmentations == ('mask',)
  assert stages['adaptssr_mask'].second_augmentations is None
  pair = stages['adaptssr_crop_reorder']
  assert pair.augmentations == ('crop',)
  assert pair.second_augmentations == ('reorder',)
  rho = stages['adaptssr_rho_0.1']
  shares = rho.crop_ratio, rho.mask_ratio, rho.reorder_ratio
  assert shares == (0.9, 0.1, 0.1)
  # Crop, mask and reorder with themselves are the ablations.
  published = len(methods.PUBLISHED_METHODS)
  assert len(stages) == 1 + 1 + 1 + 1 + 2 + 3 + 3 + 1 + 5 + published
  assert stages['coles'].objective == ('coles',)
  assert stages['coles'].num_slices == 5
  assert stages['coles'].init_from == f'{folder}/masked_items/seed_7'
  # Of another shape, and so with a start of its own.
  assert stages['idicl'].init_from.endswith('/masked_items_of_interests/seed_7')
  interests = stages['masked_items_of_interests']
  assert interests.encoder_fields() == SHAPE | {
    'num_queries': 4,
    'cosine_pooling': True,
  }
  assert stages['sasrec'].objective == ('causal_items',)
  assert stages['sasrec'].init_from == ''
  assert stages['pooled_items'].encoder_fields() == SHAPE
  assert stages['pooled_items'].learning_rate == 0.002
  longer = stages['pooled_items_longer']
  assert (longer.objective, longer.num_steps) == (('pooled_items',), 17)
  # The control of the last stage, at the rate of its file.
  assert longer.learning_rate == stages['last_stage'].learning_rate == 0.0003
  for name in ('pooled_items_longer', 'last_stage', 'adaptssr_after_pooled'):
    assert stages[name].init_from == f'{folder}/pooled_items/seed_7'
  assert stages['last_stage'].objective == ('pooled_items', 'adaptssr')
  assert stages['adaptssr_after_pooled'].objective == ('adaptssr',)
  assert stages['joint'].init_from == ''
  assert stages['joint'].encoder_fields() == SHAPE
  bags = 'cells/bag_of_items', 'gender/share_0.5/split_3'
  assert made['/'.join(bags)].max_length == SHAPE['max_length']
  assert made['_whole/'.join(bags)].max_length == 0
  assert made[f'cells/bag_svd/{bags[1]}'].method == 'bag_svd'


def test_interrupted_and_resumed_is_uninterrupted(
  stand_ins, settings, tmp_path, data_dir
):
  compare.main(settings)
  whole, stand_ins.calls = stand_ins.calls, []
  resumed = settings_of(tmp_path, data_dir, workdir=str(tmp_path / 'resumed'))
  # While pre-training, in the middle of a cell, and in the last one.
  for die_at in (11, 4, 17):
    stand_ins.calls, stand_ins.die_at = [], die_at
    with pytest.raises(Interruption):
      compare.main(resumed)
  stand_ins.calls, stand_ins.die_at = [], None
  compare.main(resumed)
  records = [
    json.loads((ROOT / resumed.workdir / f'{one.name}.json').read_text())
    for one in plan(compare.read_grid(resumed))
  ]
  assert sum(record['resumed'] for record in records) == 3
  assert len(stand_ins.calls) == len(whole) - 10 - 3 - 16
  assert results_of(resumed) == results_of(settings)


def test_seeds_and_splits_may_be_paired(stand_ins, settings):
  paired = changed(
    settings,
    methods=('none', 'last_item'),
    tasks=('click',),
    seeds=('0', '1', '2', '3'),
    crossed=False,
  )
  results = compare.main(paired)
  assert results['pretraining'] == []
  cells = [(one['split'], one['seed']) for one in results['cells']]
  assert cells == [(0, 0), (2, 1), (0, 2), (2, 3), (0, None), (2, None)]
  assert results['summary'][0]['methods']['none']['runs'] == 4


def test_more_methods_may_be_added(stand_ins, settings):
  compare.main(settings)
  del stand_ins.calls[:]
  more = (*settings.methods, 'adaptssr_cold')
  compare.main(changed(settings, methods=more))
  assert len(stand_ins.calls) == 2 + 8


def test_one_pre_training_may_serve_all_seeds(stand_ins, settings, tmp_path):
  compare.main(changed(settings, pretrain_seeds=1))
  starts = {
    one.pretrained
    for one in stand_ins.settings
    if isinstance(one, FinetuneSettings)
  }
  folder = tmp_path / 'compare' / 'pretrain'
  assert starts == {
    '',
    f'{folder}/masked_items/seed_0',
    f'{folder}/adaptssr/seed_0',
  }
  text = (tmp_path / 'compare' / 'results.md').read_text()
  assert 'Seeds used for pre-training: 1 of 2.' in text


def test_a_pre_training_that_collapsed_is_marked(stand_ins, settings):
  settings = changed(settings, tasks=('gender',), splits=('0',))
  compare.main(settings)
  folder = ROOT / settings.workdir
  text = (folder / 'results.md').read_text()
  assert 'Masked items 40 to 45, AdaptSSR 40 to 45' in text
  assert 'WARNING' not in text
  names = ('step', 'loss', 'mean_cosine', 'effective_rank')
  # Of seed 0 a state is sound, though its loss is not the least; of 5 none is.
  for seed, rows in (
    (0, [(1, 0.3, 0.2, 9.0), (2, 0.2, 0.99, 9.0)]),
    (5, [(1, 0.1, 0.98, 9.0), (2, 0.2, 0.99, 9.0)]),
  ):
    lines = []
    for step, *values in rows:
      named = zip(names[1:], values, strict=True)
      line = {f'validation_{name}': value for name, value in named}
      lines.append(json.dumps({'step': step} | line))
    path = folder / f'pretrain/adaptssr/seed_{seed}/metrics.jsonl'
    path.write_text(''.join(f'{line}\n' for line in lines))
  results = compare.main(settings)
  best = {
    one['seed']: one['best']['step']
    for one in results['pretraining']
    if one['method'] == 'adaptssr'
  }
  # The last state is what a run leaves of which all have collapsed.
  assert best == {0: 1, 5: 2}
  text = (folder / 'results.md').read_text()
  assert text.count('WARNING') == 1
  assert '- WARNING: AdaptSSR, seed 5: all users have nearly the same' in text


def test_what_is_compiled_is_forgotten():
  double = jax.jit(lambda x: x * 2)
  double(1.0)
  assert double._cache_size() == 1
  forget_compiled()
  assert double._cache_size() == 0


def test_the_time_left_is_that_of_runs_like_those_done():
  cell = Cell('none', 'age', 1.0, 0, 0)
  other = Cell('bag_of_items', 'age', 1.0, 0, None, '')
  seconds = {cell.timing_group: [2.0, 4.0], 'pretrain/masked_items': [10.0]}
  left = [cell, Pretraining('adaptssr', 0), other]
  # A stage takes as long as the others, a cell as the other cells.
  assert compare.time_left(seconds, left) == (3 + 10 + 3, 0)
  # How long vectors take is not known from either.
  vectors = Vectors('none', 0, '7_users')
  few = Cell('none', 'age', 0.05, 0, 0)
  assert compare.time_left(seconds, [few, vectors, few]) == (3 + 3, 1)
  # Nor anything where all that is done was resumed.
  assert compare.time_left({}, left) == (0, 3)


@pytest.mark.parametrize('name', ['quickstart', 'ml100k', 'ml1m'])
def test_the_configs_are_whole(name, data_dir, monkeypatch):
  monkeypatch.chdir(ROOT)
  path = ROOT / 'experiments' / 'configs' / f'{name}_compare.flags'
  settings = from_flagfile(CompareSettings, path)
  chosen = choose_methods(settings.methods)
  found = setup.read_pretraining(settings, methods.METHODS, chosen)
  assert found
  for name, stage in found.items():
    # Given, so that it is the same after another stage and without.
    assert stage.dropout_rate > 0, name
    assert stage.dataset == settings.dataset, name
  for kind in methods.METRICS:
    tuned = setup.read_flagfile(FinetuneSettings, settings, kind)
    assert tuned.dataset == settings.dataset or not getattr(settings, kind)


@pytest.mark.slow
def test_real_runs(tmp_path, data_dir):
  shape = ''.join(f'--{name}={value}\n' for name, value in ENCODER.items())
  plain = '--batch_size=64\n--buckets=1\n--microbatch=0\n'
  steps = f'{plain}--num_steps=6\n--log_every=2\n'
  texts = {
    'warm_start': f'{shape}{steps}--objective=masked_items\n',
    'pretrain': steps,
    **dict.fromkeys(('classification', 'ranking'), f'{plain}--num_epochs=1\n'),
  }
  for name, text in texts.items():
    (tmp_path / f'{name}.flags').write_text(text)
  settings = CompareSettings(
    workdir=str(tmp_path / 'compare'),
    data_dir=data_dir,
    dataset='synthetic_users/tiny',
    tasks=('gender', 'click'),
    methods=('bag_of_items', 'last_item', 'adaptssr'),
    modes=('fine_tuned', 'frozen', 'frozen_with_bag'),
    probe_splits=2,
    **{name: str(tmp_path / f'{name}.flags') for name in texts},
  )
  results = compare.main(settings)
  gender, frozen, with_bag, click, ranked = results['summary']
  assert list(gender['methods']) == ['bag_of_items', 'adaptssr']
  assert list(click['methods']) == ['last_item', 'adaptssr']
  assert list(frozen['methods']) == ['bag_of_items', 'adaptssr']
  assert list(with_bag['methods']) == ['adaptssr']
  assert list(ranked['methods']) == ['last_item', 'adaptssr']
  for column in (frozen, with_bag, ranked):
    for values in column['methods'].values():
      assert list(values['by_split']) == ['0', '1']
      assert 0 <= values['mean'] <= 1
  for column in (gender, click):
    for values in column['methods'].values():
      low, high = values['interval']
      assert 0 <= low <= values['mean'] <= high <= 1
  assert [one['steps'] for one in results['pretraining']] == [6, 6]
  assert compare.main(settings) == results
