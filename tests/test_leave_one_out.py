"""Leave-one-out on synthetic MovieLens ratings, and runs on that split."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax.checkpoint.encoders import restore_model
from adaptssr_jax.data import load
from adaptssr_jax.data.movielens_users import leave_one_out_rows
from adaptssr_jax.table.lookup import encoder_params
from experiments import baselines, finetune, pretrain
from experiments.finetuning import data as tuning_data
from experiments.finetuning.tasks import CUTOFFS
from experiments.flags.binder import SettingsError
from experiments.run import data as datasets
from tests.labelled_rows import rows_of
from tests.synthetic_movielens import grouplens_files, log_of, plain, write_zip
from tests.tiny_runs import ENCODER, finetune_settings, pretrain_settings

SPLITS = ('train', 'validation', 'test')
PRETRAIN = 'pretrain'
NEXT_ITEM = 'next_item'


def made_log():
  """User 1 has five films in two seconds, user 2 four, user 3 too few."""
  films = {1: 'abcde', 2: 'cafb', 3: 'abc'}
  ratings = [
    # The later second comes first in the file.
    (user, film, 4, 900 + (at < 3))
    for user, names in films.items()
    for at, film in enumerate(names)
  ]
  return log_of(ratings)


def by_name(rows, vocabulary):
  """The history of each user, the positive, and the other excluded targets."""
  names = [None, *vocabulary.items]
  return {
    user: (
      ''.join(names[item] for item in items),
      names[positive + 1],
      {names[target + 1] for target in others},
    )
    for user, items, positive, others in rows_of(rows)
  }


def test_the_last_film_is_the_test_and_the_one_before_validation():
  splits, vocabulary, left_out = leave_one_out_rows(made_log(), NEXT_ITEM)
  assert left_out == 1
  # In the order of time and then of the file: d e a b c, and b c a f.
  assert vocabulary.items == list('deabcf')
  assert vocabulary.labels == vocabulary.items
  found = [by_name(splits[name], vocabulary) for name in SPLITS]
  assert [rows['1'] for rows in found] == [
    ('de', 'a', set('de')),
    ('dea', 'b', set('dea')),
    ('deab', 'c', set('deab')),
  ]
  assert [rows['2'] for rows in found] == [
    ('b', 'c', set('b')),
    ('bc', 'a', set('bc')),
    ('bca', 'f', set('bca')),
  ]


def test_behaviours_to_learn_from_hold_neither_of_the_last_two():
  splits, vocabulary, _ = leave_one_out_rows(made_log(), PRETRAIN)
  assert vocabulary.labels == ()
  found = {
    name: {
      row[0]: ''.join(vocabulary.items[item - 1] for item in row[1:-1])
      for row in plain(rows)
    }
    for name, rows in splits.items()
  }
  assert found == {
    'train': {'1': 'dea', '2': 'bc'},
    'validation': {'1': 'deab', '2': 'bca'},
  }


def test_a_film_that_is_seen_again_may_be_the_positive():
  ratings = [(1, film, 3, at) for at, film in enumerate('abcba')]
  splits, vocabulary, _ = leave_one_out_rows(log_of(ratings), NEXT_ITEM)
  assert by_name(splits['test'], vocabulary)['1'] == ('abcb', 'a', set('bc'))


def test_rows_are_shuffled_alike_in_all_splits():
  ratings = [(user, film, 3, 9) for user in range(40) for film in 'abcdef']
  users = [
    rows.user_id
    for task in (NEXT_ITEM, PRETRAIN)
    for rows in leave_one_out_rows(log_of(ratings), task)[0].values()
  ]
  assert users == [users[0]] * 5
  assert users[0] != sorted(users[0], key=int)
  assert sorted(users[0], key=int) == [str(user) for user in range(40)]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Flags for a synthetic MovieLens-100k with 31 users and 40 films."""
  folder = tmp_path_factory.mktemp('made')
  write_zip(folder / 'ml-100k.zip', grouplens_files('100k'))
  return {
    'dataset': 'movielens_users/100k',
    'data_dir': str(folder / 'data'),
    'manual_dir': str(folder),
    'split': 'leave_one_out',
  }


def test_it_is_prepared_and_read_back(made):
  for task, splits in (('pretrain', SPLITS[:2]), ('next_item', SPLITS)):
    builder = tfds.builder(
      f'movielens_users/100k_leave_one_out_{task}', data_dir=made['data_dir']
    )
    data = load(builder, manual_dir=made['manual_dir'])
    assert tuple(data.splits) == splits
    # The user with ten ratings has enough for this split.
    assert [len(rows.items) for rows in data.splits.values()] == (
      [31] * len(splits)
    )
    assert len(data.vocabulary.items) == 40
    assert builder.info.metadata['users_left_out'] == 0


@pytest.mark.parametrize('method', ['most_popular', 'last_item'])
def test_baselines_rank_the_next_item(made, tmp_path, method):
  settings = baselines.BaselineSettings(
    workdir=str(tmp_path / 'run'), task='next_item', method=method, **made
  )
  result = baselines.main(settings)
  assert set(result['test']) == {
    f'{name}@{k}' for name in ('hit_rate', 'mrr', 'ndcg') for k in CUTOFFS
  }
  with np.load(tmp_path / 'run' / 'predictions.npz') as saved:
    # At most the 40 films except those of the history.
    assert ((saved['rank'] >= 1) & (saved['rank'] <= 30)).all()
    assert len(saved['rank']) == 31


@pytest.fixture(scope='module')
def trained(made, tmp_path_factory):
  """The workdir of a run of causal items."""
  folder = tmp_path_factory.mktemp('trained') / 'run'
  settings = pretrain_settings(
    folder,
    **made | {'objective': 'causal_items', 'batch_size': 16, 'num_steps': 4},
  )
  pretrain.main(settings)
  return folder


def test_causal_items_learn_a_causal_encoder_read_at_its_last_state(trained):
  encoder, params, vocabulary = restore_model(trained)
  assert (encoder.causal, encoder.readout) == (True, 'last')
  assert encoder.max_length == ENCODER['max_length']
  assert params['head']['bias'].shape == (41,)
  assert len(vocabulary) == 40
  lines = (trained / 'metrics.jsonl').read_text().splitlines()
  assert 'validation_accuracy' in json.loads(lines[-1])
  assert '--causal=True' in (trained / 'flags.txt').read_text()


def zero_shot_settings(workdir, made, trained, **changes):
  flags = {'task': 'next_item', 'mode': 'zero_shot', 'batch_size': 16}
  flags |= {'dropout_rate': None, 'pretrained': str(trained)}
  return finetune_settings(workdir, **made | flags | changes)


def test_zero_shot_ranks_by_the_pretrained_scores(made, trained, tmp_path):
  settings = zero_shot_settings(tmp_path, made, trained)
  result = finetune.main(settings)
  assert result['best_step'] == 0
  encoder, params, _ = restore_model(trained)
  for name in ('validation', 'test'):
    users = finetune.open_task(settings).splits[name]
    rows = np.arange(len(users.items))
    items = users.items.padded(rows, encoder.max_length)
    states = jax.jit(encoder.apply)({'params': encoder_params(params)}, items)
    scores = states @ params['table'][1:41].T
    scores = np.asarray(scores + params['head']['bias'][None, 1:])
    ranks = []
    for row, (_, _, own, others) in enumerate(rows_of(users)):
      rest = np.delete(scores[row], [own, *others])
      ranks.append(1 + (rest > scores[row, own]).sum())
    if name == 'test':
      with np.load(tmp_path / 'predictions.npz') as saved:
        np.testing.assert_array_equal(saved['rank'], ranks)
    inside = np.array(ranks) <= 10
    expected = (inside / np.log2(np.array(ranks) + 1)).mean()
    assert result[name]['ndcg@10'] == pytest.approx(expected, rel=1e-4)


def test_tied_targets_are_fine_tuned_by_a_softmax(made, trained, tmp_path):
  settings = zero_shot_settings(
    tmp_path,
    made,
    trained,
    mode='full',
    tied_targets=True,
    ranking_loss='softmax',
    readout='pooled,last',
    num_epochs=1,
  )
  finetune.main(settings)
  encoder, params, _ = restore_model(tmp_path)
  _, before, _ = restore_model(trained)
  assert encoder.readout == 'pooled,last'
  assert set(params['head']) == {'projection', 'bias'}
  # Half of either part, and then two steps of Adam of 0.1.
  start = np.tile(np.eye(8) / 2, (2, 1))
  change = np.abs(params['head']['projection'] - start)
  assert 1e-3 < change.max() < 0.25
  table, old = (p['table'] for p in (params, before))
  assert np.abs(table - old)[1:41].max() > 1e-3


def open_flags(made, task, **changes):
  flags = made | {'task': task} | changes
  return baselines.BaselineSettings(**flags), task


@pytest.mark.parametrize(
  ('task', 'changes', 'words'),
  [
    ('gender', {}, r'has --task=next_item, not --task=gender'),
    ('next_item', {'split': 'last_ten'}, 'needs --split=leave_one_out'),
    (
      'next_item',
      {'dataset': 'synthetic_users/tiny'},
      'is for --dataset=movielens_users.*: leave it out',
    ),
    (
      'next_item',
      {'dataset': 'user_tables', 'events': ('x.csv',)},
      'not for --dataset=user_tables',
    ),
  ],
)
def test_what_has_no_such_split_is_refused(made, task, changes, words):
  with pytest.raises(SettingsError, match=words):
    datasets.open_data(*open_flags(made, task, **changes))


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'split_seed': 1}, 'which --split=leave_one_out does not'),
    ({'pretrained': '', **ENCODER}, 'zero_shot needs --pretrained=DIR'),
    ({'shard_table': True}, '--shard_table does not go with --mode=zero_shot'),
    ({'plan': True}, 'and --mode=zero_shot has none'),
    (
      {'task': 'click', 'split': 'last_ten'},
      'has seen films that --task=click holds out',
    ),
    (
      {'task': 'gender', 'split': 'last_ten'},
      '--mode=zero_shot is for ranking tasks; gender is a classification t',
    ),
    (
      {'mode': 'full', 'tied_targets': True, 'table_update': 'rows'},
      '--table_update=rows does not go with --tied_targets',
    ),
  ],
)
def test_what_cannot_be_ranked_is_refused(
  made, trained, tmp_path, changes, words
):
  settings = zero_shot_settings(tmp_path / 'run', made, trained, **changes)
  with pytest.raises(SettingsError, match=words):
    finetune.main(settings)


def test_a_run_that_scores_no_items_ranks_none(made, pretrained, tmp_path):
  settings = zero_shot_settings(tmp_path / 'f', made, pretrained.workdir)
  with pytest.raises(SettingsError, match='has not learned to score items'):
    finetune.main(settings)


def test_a_run_that_has_seen_held_out_films_starts_no_other(
  made, trained, tmp_path, monkeypatch
):
  start = pretrain_settings('unused', **made | {'init_from': str(trained)})
  pretrain.check_source(start)
  with pytest.raises(SettingsError, match='that are held out without this fla'):
    pretrain.check_source(dataclasses.replace(start, split='last_ten'))
  # Nor one that was fine-tuned on another task.
  flags = {'split': 'leave_one_out', 'task': 'click'}
  told = types.SimpleNamespace(flags=flags)
  monkeypatch.setattr(tuning_data, 'restore_description', lambda run: told)
  settings = zero_shot_settings(tmp_path, made, trained)
  with pytest.raises(SettingsError, match='--task=click, so that it may have'):
    finetune.open_task(settings)
  flags['task'] = 'next_item'
  finetune.open_task(settings)


@pytest.mark.parametrize(
  ('task', 'flags', 'words'),
  [
    ('gender', {'tied_targets': True}, '--tied_targets is for ranking tasks'),
    ('age', {'ranking_loss': 'softmax'}, '--ranking_loss is for ranking tasks'),
  ],
)
def test_flags_of_rankings_are_of_rankings(
  tmp_path, data_dir, task, flags, words
):
  settings = finetune_settings(tmp_path, data_dir, task=task, **flags)
  with pytest.raises(SettingsError, match=words):
    finetune.main(settings)


def test_causal_items_refuse_an_encoder_that_sees_both_ways(tmp_path, data_dir):
  settings = pretrain_settings(
    tmp_path, data_dir, objective='causal_items', causal=False
  )
  with pytest.raises(SettingsError, match='needs --causal=true'):
    pretrain.main(settings)
