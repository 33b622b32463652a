"""With Beam, here on its local runner, a data set is what it is without."""

import dataclasses
import logging
import pathlib
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data import beam, pieces
from adaptssr_jax.data.readers import table_pieces
from adaptssr_jax.data.user_tables import user_tables_config
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.run.data import open_data
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
    list(users.splits),
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
def test_ttl_files_make_the_same_data_set(tmp_path, manual, task):
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
def test_what_is_wrong_is_said_as_without_beam(tmp_path, manual):
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


def here(function, arguments, folder):
  """Stands in for Beam."""
  del folder
  for argument in arguments:
    function(argument)


def grouped(folder, events, labels=None):
  folder.mkdir(parents=True)
  source = table_pieces.Source(
    tuple(map(str, events)), labels, 'user_id', 'item_id', 'time', 'age'
  )
  return table_pieces.group_users(
    source,
    split=lambda count: {'train': np.arange(count)},
    run=here,
    folder=folder,
  )


def test_a_label_that_contradicts_is_found_without_events(tmp_path):
  events = write(tmp_path / 'a.csv', EVENTS[:1])
  # In any bucket: all but one of eight have no events.
  for user in range(9):
    rows = [('anna', 'x'), (f'{user}', 'x'), (f'{user}', 'y')]
    labels = write(tmp_path / 'l.csv', rows, ('user_id', 'age'))
    with pytest.raises(data.DataError, match=f'line 3 and .y. in {labels}'):
      grouped(tmp_path / f'{user}' / 'pieces', [events], str(labels))


def test_rows_dealt_out_to_buckets_stay_in_one_file(tmp_path):
  paths = [write(tmp_path / f'{n}.csv', EVENTS) for n in range(5)]
  made = grouped(tmp_path / 'pieces', paths)
  assert len(list((tmp_path / 'pieces').glob('part-*'))) == len(paths)
  numbers = np.concatenate([pieces.load_rows(path)[1] for path in made.paths])
  assert sorted(numbers) == list(range(19))
  assert made.vocabulary.labels == ['new', 'old']


def test_integers_that_floats_of_another_file_would_round_are_found(tmp_path):
  paths = [
    write(tmp_path / f'{time}.csv', [('u', 'i', time, 'x')])
    for time in (2**53 + 1, 0.5)
  ]
  with pytest.raises(
    data.DataError, match=f'{paths[0]}, line 2: time .*rounded'
  ):
    grouped(tmp_path / 'pieces', paths)


def test_arrays_are_saved_as_they_are_and_never_pickled(tmp_path):
  path = tmp_path / 'a.npz'
  pieces.save(path, numbers=np.arange(3))
  assert list(pieces.load(path)) == ['numbers']
  with pytest.raises(TypeError, match='names holds objects'):
    pieces.save(path, names=np.array(['a', None]))
  assert [file.name for file in tmp_path.iterdir()] == ['a.npz']


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
@pytest.mark.parametrize(
  ('option', 'reason'),
  [
    ('--runner=no_such_runner', 'Unexpected pipeline runner'),
    ('--runner=no_such.Runner', 'No module named'),
    ('--direct_num_workers=many', 'direct_num_workers: invalid int value'),
    ('--no_such_flag=3', 'there is no option --no_such_flag'),
    ('runner=FlinkRunner', 'write --NAME=VALUE'),
    ('--help', 'it only helps'),
  ],
)
def test_wrong_options_are_an_error_before_any_work(tmp_path, option, reason):
  settings = DataSettings(
    dataset='synthetic_users/tiny',
    data_dir=str(tmp_path),
    beam=True,
    beam_options=(option,),
  )
  with pytest.raises(data.DataError) as error:
    open_data(settings, 'age')
  assert f'--beam_options={option} cannot be used: ' in str(error.value)
  assert reason in str(error.value)
  assert not list(tmp_path.rglob('*1.0.0*'))


@pytest.mark.slow
def test_options_of_any_runner_are_kept_and_the_local_one_is_the_default():
  for given, expected in (
    ([], {'runner': 'FnApiRunner'}),
    (['--max_num_workers=3'], {'runner': 'FnApiRunner', 'max_num_workers': 3}),
    (
      ['--runner=FlinkRunner', '--flink_master=h:1', '--of_its_server=3'],
      {'runner': 'FlinkRunner', 'flink_master': 'h:1'},
    ),
  ):
    found = beam.pipeline_options(given).get_all_options()
    assert expected.items() <= found.items()


@pytest.mark.slow
def test_options_that_are_tried_do_not_swallow_the_log(monkeypatch):
  # As in a program that has not set up logging.
  monkeypatch.setattr(logging.root, 'handlers', [])
  beam.pipeline_options([])
  assert [handler.stream for handler in logging.root.handlers] == [sys.stderr]


def _fail(number):
  if number:
    raise OSError(28, 'No space left on device', f'/disk/{number}')


@pytest.mark.slow
def test_what_the_system_refuses_to_a_worker_is_no_traceback_of_beam(tmp_path):
  with pytest.raises(OSError, match='No space left on device') as error:
    beam.for_each(_fail, range(3), tmp_path / 'told', options=[])
  assert '/disk/1' in str(error.value)
