"""From a user's own tables to a result; from one vocabulary to another."""

import dataclasses

import jax
import numpy as np
import pytest

from adaptssr_jax.checkpoint.encoders import restore_encoder
from experiments import finetune, pretrain
from experiments.flags.binder import SettingsError
from experiments.run.data import open_data
from experiments.run.workdir import opened_workdir
from tests.tiny_runs import (
  ENCODER,
  FINETUNE,
  PRETRAIN,
  lines,
)
from tests.user_table_files import write

# Some items of the tiny users, in another order, and others.
ITEMS = ['item_7', 'unknown', 'item_3', 'item_60', 'item_61', '7']
KNOWN = ['item_7', 'item_3', 'item_60']


@pytest.fixture(scope='module')
def tables(tmp_path_factory, data_dir):
  """The flags of a table of 60 users, and of their labels."""
  folder = tmp_path_factory.mktemp('tables')
  events = [
    (f'u{user}', ITEMS[(user * place) % len(ITEMS)], place)
    for user in range(60)
    for place in range(1 + user % 5)
  ]
  labels = [(f'u{user}', ('no', 'yes')[user % 2]) for user in range(60)]
  write(folder / 'e.csv', events, ('who', 'what', 'when'))
  write(folder / 'l.csv', labels, ('who', 'buys'))
  return {
    'dataset': 'user_tables',
    'data_dir': data_dir,
    'events': (str(folder / 'e.csv'),),
    'labels': str(folder / 'l.csv'),
    'user_column': 'who',
    'item_column': 'what',
    'time_column': 'when',
  }


def finetune_settings(tables, **changes):
  fields = FINETUNE | {'task': 'buys', 'num_epochs': 1} | tables | changes
  return finetune.FinetuneSettings(**fields)


def test_flags_say_which_rows_are_read_and_how(tables):
  settings = finetune_settings(
    tables, where="what <> 'unknown'", time_format='%S', memory_limit='200MB'
  )
  users = open_data(settings, task='buys')
  assert sorted(users.vocabulary.items) == sorted(set(ITEMS) - {'unknown'})
  plain = open_data(finetune_settings(tables), task='buys')
  assert sorted(plain.vocabulary.items) == sorted(ITEMS)


@pytest.mark.slow
def test_tables_are_pre_trained_and_fine_tuned_on(tables, tmp_path, capsys):
  fields = PRETRAIN | ENCODER | tables
  fields |= {'workdir': str(tmp_path / 'p'), 'batch_size': 16, 'num_steps': 4}
  fields |= {'objective': ('pooled_items',)}
  pretrain.main(pretrain.PretrainSettings(**fields))
  for line in lines(tmp_path / 'p'):
    assert np.isfinite(list(line.values())).all()
  result = finetune.main(
    finetune_settings(
      tables, workdir=str(tmp_path / 'f'), pretrained=str(tmp_path / 'p')
    )
  )
  assert set(result['test']) == {'accuracy', 'macro_f1', 'auc'}
  assert 'knows all 6 items' in capsys.readouterr().out
  _, _, vocabulary = restore_encoder(tmp_path / 'f')
  assert sorted(vocabulary) == sorted(ITEMS)


def test_rows_of_the_item_table_are_found_by_raw_id(tables, pretrained, capsys):
  settings = finetune_settings(tables, pretrained=pretrained.workdir)
  users = open_data(settings, task='buys')
  _, params = finetune.make_model(settings, users, jax.random.key(5))
  assert 'knows 3 of 6 items' in capsys.readouterr().out

  table = np.asarray(params['table'])
  _, source, names = restore_encoder(pretrained.workdir)
  expected = np.asarray(source['item_embedding'])
  assert table.shape == (len(ITEMS) + 2, 8)
  np.testing.assert_array_equal(table[[0, -1]], expected[[0, -1]])
  for row, item in enumerate(users.vocabulary.items, 1):
    if item in KNOWN:
      place = names.index(item) + 1
      np.testing.assert_array_equal(table[row], expected[place])
    else:
      assert np.abs(expected - table[row]).max(axis=1).min() > 1e-3
  for name in set(source) - {'item_embedding'}:
    jax.tree.map(
      np.testing.assert_array_equal, params['encoder'][name], source[name]
    )


def test_a_run_on_another_vocabulary_trains_and_is_tested(
  tables, pretrained, tmp_path, capsys
):
  settings = finetune_settings(
    tables, workdir=str(tmp_path), pretrained=pretrained.workdir, num_steps=1
  )
  result = finetune.main(settings)
  assert result['best_step'] == 1
  assert 'knows 3 of 6 items' in capsys.readouterr().out
  encoder, params, vocabulary = restore_encoder(tmp_path)
  assert encoder.num_items == 6
  assert params['item_embedding'].shape == (8, 8)
  assert sorted(vocabulary) == sorted(ITEMS)


@pytest.mark.parametrize('field', ['events', 'labels'])
def test_other_tables_are_another_run(tables, tmp_path, field):
  settings = finetune_settings(tables, workdir=str(tmp_path))
  with opened_workdir(settings) as folder:
    (folder / 'metrics.jsonl').write_text('{"step": 1}\n')
  other = dataclasses.replace(
    settings, **{field: ('x.csv',) if field == 'events' else 'x.csv'}
  )
  with (
    pytest.raises(SettingsError, match=f'--{field} was .*, is x.csv'),
    opened_workdir(other),
  ):
    pass
