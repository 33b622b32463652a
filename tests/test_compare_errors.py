"""Errors of a comparison name the run and the flag."""

import pathlib

import numpy as np
import pytest

from experiments import compare
from experiments.comparison import commands, setup
from experiments.flags.binder import SettingsError
from experiments.run.data import open_data
from tests.compare_stand_ins import (
  changed,
  flag_files,
  settings,
  settings_of,
  stand_ins,
)

__all__ = ['settings', 'stand_ins']


@pytest.mark.parametrize(
  ('learning_rate', 'epochs', 'words'),
  [
    (0.001, 3, r'cells/none/gender.* other flags: --num_epochs was 2, is 3\. '),
    (0.1, 2, r'pretrain/adaptssr/seed_0 .* --learning_rate was 0.001, is 0.1'),
  ],
)
def test_a_run_with_other_flags_is_refused(
  stand_ins, settings, tmp_path, learning_rate, epochs, words
):
  compare.main(settings)
  flag_files(tmp_path, learning_rate=learning_rate)
  (tmp_path / 'classification.flags').write_text(
    f'--num_epochs={epochs}\n--patience=3\n'
  )
  with pytest.raises(SettingsError, match=words):
    compare.main(settings)


def test_a_cell_on_another_pre_training_is_refused(
  stand_ins, settings, tmp_path
):
  compare.main(settings)
  flag_files(tmp_path, learning_rate=0.1)
  for seed in (0, 5):
    folder = tmp_path / 'compare' / 'pretrain' / 'adaptssr' / f'seed_{seed}'
    folder.with_name(f'seed_{seed}.json').unlink()
    (folder / 'metrics.jsonl').unlink()
  words = r'cells/adaptssr/gender.*pretrain/adaptssr/seed_0:learning_rate was'
  with pytest.raises(SettingsError, match=words):
    compare.main(settings)


@pytest.mark.parametrize(
  ('task', 'name'),
  [('gender', 'cells/none/gender.*'), ('pretrain', 'pretrain/masked_items.*')],
)
def test_a_run_on_other_data_is_refused(
  stand_ins, settings, monkeypatch, task, name
):
  settings = changed(settings, seeds=('0',), splits=('0',))
  compare.main(settings)

  def open_changed(settings, opened):
    data = open_data(settings, opened)
    return data._replace(name='changed') if opened == task else data

  monkeypatch.setattr(setup, 'open_data', open_changed)
  words = f'^{name} --dataset was synthetic_users/tiny_{task}/.*, is changed'
  with pytest.raises(SettingsError, match=words):
    compare.main(settings)


def test_predictions_of_other_rows_are_refused(stand_ins, settings):
  settings = changed(settings, methods=('none',), tasks=('gender',))
  compare.main(settings)
  path = f'{settings.workdir}/cells/none/gender/share_1/split_2/seed_5'
  with np.load(f'{path}/predictions.npz') as found:
    columns = dict(found)
  columns['example_id'] = columns['example_id'][::-1]
  np.savez(f'{path}/predictions.npz', **columns)
  words = (
    r'^cells/none/gender/share_1/split_2/seed_5 was not tested on the test'
  )
  with pytest.raises(SettingsError, match=words):
    compare.main(settings)


@pytest.mark.parametrize(
  ('name', 'text', 'words'),
  [
    ('classification', '--kind=conversion', 'leave out --kind=conversion'),
    ('classification', '--batch_size=3', '--batch_size: '),
    (
      'warm_start',
      '--objective=masked_items\n--batch_size=3',
      '--batch_size: ',
    ),
    ('pretrain', '--fusion=1.5', r'--fusion must be .* not 1.5'),
    ('pretrain', '--log_to=nowhere', '--log_to=nowhere must be one of'),
    ('classification', '--log_to=nowhere', '--log_to=nowhere must be one of'),
    (
      'warm_start',
      '--objective=masked_items\n--table_update=rows',
      '--table_update=rows does not go with --objective=masked_items',
    ),
    (
      'pretrain',
      '--weight_decay=0.1\n--table_update=rows',
      r'--table_update=rows does not go with --weight_decay=0\.1',
    ),
    (
      'classification',
      '--mode=frozen',
      'leave out --mode=frozen; frozen encoders have columns',
    ),
    ('first_stage', '--objective=pooled_items\n--select_by=probe', 'leave out'),
    (
      'first_stage',
      '--objective=pooled_items\n--split=leave_one_out',
      'leave out --split=leave_one_out: all methods',
    ),
  ],
)
def test_a_flag_file_is_refused_before_anything_is_made(
  stand_ins, settings, tmp_path, name, text, words
):
  (tmp_path / f'{name}.flags').write_text(text)
  with pytest.raises(SettingsError, match=f'^--{name}=.*{words}'):
    compare.main(settings)
  assert not stand_ins.calls
  assert not (tmp_path / 'compare').exists()


def test_more_seeds_of_pre_training_than_seeds_are_refused(
  stand_ins, settings, tmp_path
):
  with pytest.raises(SettingsError, match=r'^--pretrain_seeds is more than'):
    compare.main(changed(settings, pretrain_seeds=3))
  assert not (tmp_path / 'compare').exists()


def test_a_comparison_without_its_reference_says_so(stand_ins, settings):
  methods = {'methods': ('last_item',), 'tasks': ('click',)}
  compare.main(changed(settings, **methods))
  page = pathlib.Path(settings.workdir, 'results.md').read_text()
  assert 'in points, without a comparison with none:' in page
  assert '- No tests: no row is compared with none. How the' in page
  assert 'Seeds used for pre-training' not in page


def test_an_error_names_its_run(settings, monkeypatch):
  def fail(settings):
    raise SettingsError('--num_heads: no')

  monkeypatch.setattr(commands.finetune, 'main', fail)
  words = r'^cells/none/gender/share_1/split_0/seed_0: --num_heads: no$'
  with pytest.raises(SettingsError, match=words):
    compare.main(settings)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'methods': ('adaptsr',)}, r"no 'adaptsr'; did you mean 'adaptssr'\?"),
    ({'seeds': ('0', 'x')}, r"--seeds must be whole numbers from 0 .*'x'"),
    ({'splits': ('-1',)}, r"--splits must be whole numbers from 0.*'-1'"),
    ({'seeds': ()}, r'--seeds needs at least one number'),
    ({'train_shares': ('1.5',)}, r"--train_shares .*above 0 to 1, not '1.5'"),
    ({'train_shares': ('nan',)}, r"--train_shares .*not 'nan'"),
    (
      {'variant': ('pooled_item --embed_dim=8',)},
      r"--variant=pooled_item --embed_dim=8: .* did you mean 'pooled_items'",
    ),
    ({'variant': ('none --embed_dim=8',)}, r'none is not pre-trained'),
    ({'variant': ('pooled_items',)}, r'give the flags that it changes'),
    ({'variant': ('pooled_items --seed=1',)}, r'leave out --seed, which the'),
    (
      {'variant': ('adaptssr --embed_dim=16',)},
      r'--embed_dim=16 contradicts the encoder that .* masked_items, which has',
    ),
    ({'variant': ('adaptssr --fusion=foo',)}, r'--fusion must be adaptive'),
    ({'variant': ('pooled_items --plan',)}, r'leave out --plan, which the'),
    ({'variant': ('pooled_items --quiet',)}, r'leave out --quiet, which the'),
    ({'variant': ('pooled_items embed_dim',)}, r"'embed_dim' is not a flag"),
    ({'variant': ('pooled_items --embed=8',)}, r'Unknown .* flag .embed'),
    ({'variant': ('pooled_items --embed_dim=0',)}, r'--embed_dim must be at'),
    ({'rhos': ('1',)}, r"--rhos must be numbers above 0 to 0.99, not '1'"),
    ({'tasks': ('gendr',)}, r"did you mean 'gender'"),
    ({'tasks': ('pretrain',)}, r'--task=pretrain'),
    (
      {'tasks': ('conversion',), 'splits': ('1',)},
      r'both classes .* in every split',
    ),
    (
      {'crossed': False, 'seeds': ('0', '1', '2')},
      r'--crossed=false with 3 --seeds and 2 --splits',
    ),
    ({'tasks': ()}, r'--tasks needs at least one task'),
    ({'modes': ('probe',)}, r'--modes must be .*frozen.*, not .probe.'),
    ({'modes': ()}, r'--modes needs at least one of fine_tuned'),
    ({'probe_splits': 0}, r'--probe_splits must be at least 1, not 0'),
    (
      {'reference': 'pooled_items'},
      r'--reference=pooled_items is not among the rows: add it to --methods',
    ),
    (
      {'methods': ('last_stage',), 'first_stage': ''},
      r'--methods needs --first_stage=FLAGFILE',
    ),
    (
      {'methods': ('pooled_items_longer',), 'last_stage': ''},
      r'--methods needs --last_stage=FLAGFILE',
    ),
    ({'pretrain': ''}, r'--methods needs --pretrain=FLAGFILE'),
    ({'warm_start': ''}, r'--methods needs --warm_start=FLAGFILE'),
    ({'ranking': 'no/such.flags'}, r'--ranking=no/such.flags: '),
  ],
)
def test_bad_input_is_refused(tmp_path, data_dir, changes, words):
  with pytest.raises(SettingsError, match=words):
    compare.main(settings_of(tmp_path, data_dir, **changes))


@pytest.mark.parametrize(
  ('name', 'objective', 'words'),
  [
    ('warm_start', 'masked_items,adaptssr', '--objective=masked_items, not'),
    ('pretrain', 'masked_items', '--objective=adaptssr, not masked_items'),
    ('pretrain', 'adaptssr,pooled_items', '--objective=adaptssr, not'),
    (
      'first_stage',
      'adaptssr,pooled_items',
      '--objective=pooled_items, or that and more, not adaptssr,pooled_items',
    ),
    ('last_stage', 'pooled_items', '--objective=adaptssr among it, not'),
    ('joint', 'pooled_items', '--objective=pooled_items,adaptssr among it, '),
  ],
)
def test_the_files_must_have_their_objective(
  tmp_path, data_dir, name, objective, words
):
  settings = settings_of(tmp_path, data_dir)
  (tmp_path / f'{name}.flags').write_text(f'--objective={objective}\n')
  with pytest.raises(SettingsError, match=f'^--{name}=.* must have {words}'):
    compare.main(settings)


def test_the_files_may_have_more_objectives():
  joint = ('adaptssr', 'pooled_items', 'masked_items')
  for name, objectives in (
    ('joint', joint),
    ('last_stage', ('adaptssr',)),
    ('last_stage', joint),
    ('first_stage', ('pooled_items', 'masked_items')),
  ):
    setup.check_objectives(name, 'x.flags', objectives)


def test_a_stage_has_the_encoder_that_it_starts_from(
  stand_ins, settings, tmp_path
):
  path = tmp_path / 'pretrain.flags'
  path.write_text('--embed_dim=16\n--dropout_rate=0.3\n')
  words = (
    '^--pretrain: --embed_dim=16 contradicts the encoder that '
    '--methods=adaptssr starts from, masked_items, which has 8: leave --embed'
  )
  with pytest.raises(SettingsError, match=words):
    compare.main(settings)
  assert not stand_ins.calls
  # From a random start it may have another one, and all else as the others.
  path.write_text('--embed_dim=16\n')
  compare.main(changed(settings, methods=('adaptssr_cold',), tasks=('gender',)))
  assert stand_ins.settings[0].embed_dim == 16
  assert stand_ins.settings[0].max_length == 6
