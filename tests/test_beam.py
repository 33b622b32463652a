"""With Beam, here on its local runner, a data set is what it is without."""

import dataclasses
import pathlib
import sys

import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data import beam, ttl_pieces
from adaptssr_jax.data.user_tables import user_tables_config
from experiments.datasets import open_data
from experiments.settings import SettingsError
from experiments.shared_settings import DataSettings
from tests.tiny_runs import files
from tests.user_table_files import COLUMNS, EVENTS, write

LINES = [f'{900 - line},0,{line + 1},7' for line in range(20)]
LINES.append(LINES[4])
PRETRAIN = 'original_desen_pretrain.csv'
AGE = 'original_desen_age.csv'
CLICK = 'original_desen_finetune_click_nouserID.csv'


@pytest.fixture(name='manual')
def _manual(tmp_path):
  """Files of the user, those of TTL in spans of a few lines."""
  folder = tmp_path / 'manual'
  folder.mkdir()
  (folder / PRETRAIN).write_text('\n'.join(LINES))
  (folder / AGE).write_text(
    ''.join(f'{line},,{row % 3}\n' for row, line in enumerate(LINES))
  )
  (folder / CLICK).write_text(
    ''.join(
      f'{line},,{row % 3},{row % 4 + 5},8\r\n' for row, line in enumerate(LINES)
    )
  )
  return folder


def tables(folder, **settings):
  """Users spread over files of three formats, with times of two types."""
  rows = [(user, item, time, age) for user, item, time, age in EVENTS]
  floats = [(user, item, time + 0.5, age) for user, item, time, age in rows]
  paths = [
    write(folder / 'a.csv', rows[:9]),
    write(folder / 'b.parquet', floats[9:]),
    write(folder / 'c.jsonl', rows[2:7]),
  ]
  jobs = [(user, f'{place % 3}') for place, (user, *_) in enumerate(rows[7:])]
  if settings.get('label_column') == 'job':
    settings['labels'] = str(
      write(folder / 'l.csv', [*jobs, ('x', '9')], ('user_id', 'job'))
    )
  return user_tables_config(events=[str(path) for path in paths], **settings)


def prepared(name, data_dir, manual, options, config=None):
  builder = tfds.builder(
    name, data_dir=data_dir, **({'config': config} if config else {})
  )
  users = data.load(builder, manual_dir=str(manual), beam_options=options)
  return (
    files(pathlib.Path(builder.data_dir) / 'arrays'),
    list(users.vocabulary.items),
    list(users.vocabulary.labels),
    builder.info.metadata.get('source'),
  )


def assert_same_with_beam(name, tmp_path, manual, config=None):
  plain = prepared(name, tmp_path / 'plain', manual, None, config)
  made = prepared(name, tmp_path / 'beam', manual, [], config)
  assert made == plain
  assert plain[0]
  assert 'apache_beam' in sys.modules
  assert 'tensorflow' not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize('task', ['pretrain', 'click'])
def test_spans_of_ttl_files_make_the_same_data_set(
  tmp_path, manual, monkeypatch, task
):
  monkeypatch.setattr(ttl_pieces, '_SPAN', 37)
  assert_same_with_beam(f'ttl/{task}', tmp_path, manual)


@pytest.mark.slow
@pytest.mark.parametrize('label', [None, 'job'])
def test_buckets_of_users_make_the_same_data_set(tmp_path, manual, label):
  config = tables(manual, label_column=label)
  assert_same_with_beam('user_tables', tmp_path, manual, config)


@pytest.mark.slow
def test_rows_in_memory_make_the_same_data_set(tmp_path, manual, monkeypatch):
  monkeypatch.setattr(beam, '_BLOCK', 50)
  assert_same_with_beam('synthetic_users/tiny_click', tmp_path, manual)


@pytest.mark.slow
def test_what_is_wrong_is_said_as_without_beam(tmp_path, manual, monkeypatch):
  monkeypatch.setattr(ttl_pieces, '_SPAN', 37)
  wrong = {
    AGE: ['900,0,1,777,,5', '900,7,,5'],
    PRETRAIN: ['5,x'],
  }
  for name, lines in wrong.items():
    right = (manual / name).read_text()
    for line in lines:
      (manual / name).write_text(f'{right.rstrip()}\n{line}\n')
      messages = []
      for options in (None, []):
        with pytest.raises(data.DataError) as error:
          prepared('ttl/age', tmp_path / 'wrong', manual, options)
        messages.append(str(error.value))
      assert f'{name}, line 22: ' in messages[0]
      assert messages[0] == messages[1]
    (manual / name).write_text(right)
  assert not list((tmp_path / 'wrong').rglob('*1.0.0*'))


@pytest.mark.slow
def test_users_whose_labels_contradict_are_found_between_files(tmp_path):
  first = [('u1', 'i', row, 'x') for row in range(9)]
  paths = [
    write(tmp_path / 'a.csv', [*first, ('u2', 'i', 1, 'x')]),
    write(tmp_path / 'b.csv', [('u3', 'i', 3, 'y'), ('u2', 'i', 2, 'y')]),
  ]
  config = user_tables_config(
    events=[str(path) for path in paths], label_column='age'
  )
  for options in (None, []):
    with pytest.raises(data.DataError) as error:
      prepared('user_tables', tmp_path, tmp_path, options, config)
    assert f"'x' in {paths[0]}, line 11" in str(error.value)
    assert f"'y' in {paths[1]}, line 3" in str(error.value)
  times = write(tmp_path / 't.csv', [('u', 'i', '2020-01-01')], COLUMNS)
  config = user_tables_config(events=[str(paths[0]), str(times)])
  for options in (None, []):
    with pytest.raises(data.DataError, match=r'holds timestamps, that of'):
      prepared('user_tables', tmp_path, tmp_path, options, config)


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  settings = DataSettings(
    dataset='synthetic_users/tiny', data_dir=str(tmp_path), beam=True
  )
  with pytest.raises(data.DataError, match=r"pip install -e '.\[beam\]'"):
    open_data(settings, 'age')
  assert not list(tmp_path.rglob('*1.0.0*'))
  # Without the flag it is not asked for.
  open_data(dataclasses.replace(settings, beam=False), 'age')


def test_options_without_beam_are_refused(tmp_path):
  settings = DataSettings(data_dir=str(tmp_path), beam_options=('--runner=x',))
  with pytest.raises(SettingsError, match='--beam_options is for --beam'):
    open_data(settings, 'age')


@pytest.mark.slow
def test_options_reach_the_pipeline(tmp_path):
  settings = DataSettings(
    dataset='synthetic_users/tiny',
    data_dir=str(tmp_path),
    beam=True,
    beam_options=('--runner=no_such_runner',),
  )
  with pytest.raises(ValueError, match='no_such_runner'):
    open_data(settings, 'age')
  assert not list(tmp_path.rglob('*1.0.0*'))
