"""With Beam, here on its local runner, a data set is what it is without."""

import dataclasses
import logging
import pathlib
import sys

import apache_beam
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data import beam, dealing, pipeline
from adaptssr_jax.data.readers import ttl_beam
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.run.data import open_data
from tests.tiny_runs import files

LINES = [f'{900 - line},0,{line + 1},7' for line in range(20)]
LINES += [LINES[4], '0,0']
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
    builder.info.metadata.get('notes'),
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
  monkeypatch.setattr(ttl_beam, '_SPAN', 37)
  monkeypatch.setattr(dealing, '_BLOCK', 7)
  assert_same_with_beam(f'ttl/{task}', tmp_path, manual)


@pytest.mark.slow
def test_what_is_wrong_is_said_as_without_beam(tmp_path, manual, monkeypatch):
  monkeypatch.setattr(ttl_beam, '_SPAN', 37)
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
      assert f'{name}, line 23: ' in messages[0]
      assert messages[0] == messages[1]
    (manual / name).write_text(right)
  assert not list((tmp_path / 'wrong').rglob('*1.0.0*'))


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
  yield number


@pytest.mark.slow
def test_what_the_system_refuses_to_a_worker_is_no_traceback_of_beam(tmp_path):
  # As TFDS does it.
  options = beam.pipeline_options(['--no_pipeline_type_check'])
  with (
    pytest.raises(OSError, match='No space left on device') as error,
    beam.errors_left_in(tmp_path),
    apache_beam.Pipeline(options=options) as begin,
  ):
    _ = begin | apache_beam.Create([0, 1]) | pipeline.each(_fail, tmp_path)
  assert '/disk/1' in str(error.value)
