"""A data set prepared with Beam, on its local runner, equals one without."""

import dataclasses
import logging
import pathlib
import sys

import apache_beam
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data import beam
from adaptssr_jax.data.readers import pipeline
from adaptssr_jax.data.user_tables import user_tables_config
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.run.data import open_data
from tests.tiny_runs import files
from tests.user_table_files import EVENTS, rows_of, write

LINES = [f'{900 - line},0,{line + 1},7' for line in range(20)]
LINES += [LINES[4], '0,0']
PRETRAIN = 'original_desen_pretrain.csv'
AGE = 'original_desen_age.csv'
CLICK = 'original_desen_finetune_click_nouserID.csv'


@pytest.fixture(name='manual')
def _manual(tmp_path):
  """The folder of the user's files, with small files of TTL."""
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
  """Spreads users over files of three formats, with times of two types."""
  floats = [(user, item, time + 0.5, age) for user, item, time, age in EVENTS]
  plain = folder / 'plain.csv'
  lines = [','.join(map(str, row)) for row in EVENTS if '"' not in row[1]]
  plain.write_text('\n'.join(['user_id,item_id,time,age', *lines]))
  paths = [
    write(folder / 'a.csv', EVENTS[:9]),
    plain,
    write(folder / 'b.parquet', floats[9:]),
    write(folder / 'c.jsonl.gz', EVENTS[2:7]),
  ]
  jobs = [(user, f'{place % 3}') for place, (user, *_) in enumerate(EVENTS[7:])]
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
    builder.info.metadata['notes'],
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
  monkeypatch.setattr(pipeline, '_SPAN', 37)
  assert_same_with_beam(f'ttl/{task}', tmp_path, manual)


@pytest.mark.slow
@pytest.mark.parametrize('label', [None, 'age', 'job'])
def test_parts_of_tables_make_the_same_data_set(
  tmp_path, manual, monkeypatch, label
):
  monkeypatch.setattr(pipeline, '_SPAN', 40)
  config = tables(manual, label_column=label)
  assert_same_with_beam('user_tables', tmp_path, manual, config)


@pytest.mark.slow
def test_what_is_wrong_is_said_as_without_beam(tmp_path, manual, monkeypatch):
  monkeypatch.setattr(pipeline, '_SPAN', 37)
  for name, line in ((AGE, '900,0,1,777,,5'), (PRETRAIN, '5,x')):
    right = (manual / name).read_text()
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


MANY = [(f'u{row}', 'i', row, 'x') for row in range(9)]
WRONG = {
  'line': ([*MANY, ('u', '', 1, 'x')], "line 11: column 'item_id' is empty"),
  'rounded': ([('u', 'i', 0.5, 'x')], 'b.csv, line 11: time 9007199254740993'),
  'label': ([('u0', 'i', 1, 'y')], "'x' in .*a.csv, line 2 and 'y' in .*c.csv"),
  'labels': (MANY, "'x' in .*l.csv, line 2 and 'y' in .*l.csv, line 3"),
  'none': (MANY, 'no user of the events has a label'),
  'where': (MANY, 'no row of .* meets the condition'),
}


@pytest.mark.slow
@pytest.mark.parametrize('wrong', WRONG)
def test_what_is_wrong_with_tables_is_said_as_without_beam(
  tmp_path, monkeypatch, wrong
):
  monkeypatch.setattr(pipeline, '_SPAN', 40)
  rows, reason = WRONG[wrong]
  second = [*MANY, ('v', 'i', 2**53 + 1, 'x')] if wrong == 'rounded' else MANY
  settings = {'label_column': 'age'}
  if wrong in ('labels', 'none'):
    # Labels of users without events are checked as well.
    users = ['nobody'] * 2 if wrong == 'labels' else ['nobody']
    labels = list(zip(users, 'xy', strict=False))
    path = write(tmp_path / 'l.csv', labels, ('user_id', 'age'))
    settings['labels'] = str(path)
  elif wrong == 'where':
    settings['where'] = "item_id = 'other'"
  paths = [
    write(tmp_path / 'a.csv', MANY),
    write(tmp_path / 'b.csv', second),
    write(tmp_path / 'c.csv', rows),
  ]
  config = user_tables_config(events=list(map(str, paths)), **settings)
  messages = []
  for options in (None, []):
    with pytest.raises(data.DataError, match=reason) as error:
      prepared('user_tables', tmp_path, tmp_path, options, config)
    messages.append(str(error.value))
  assert messages[0] == messages[1]


@pytest.mark.parametrize(
  ('cell', 'parts'), [('plain', 4), ('"quo, ted"', 4), ('"two\nlines"', 1)]
)
def test_csv_is_cut_only_where_no_quoted_cell_may_be(
  tmp_path, monkeypatch, cell, parts
):
  monkeypatch.setattr(pipeline, '_SPAN', 40)
  path = tmp_path / 'a.csv'
  rows = [f'u{row},i,{row}\n' for row in range(15)]
  path.write_text(f'user_id,item_id,time\n{"".join(rows)}u,{cell},1\n')
  spans = pipeline.cut_file(path)
  scanned = [pipeline.scan(('a', span))[1] for span in spans]
  assert len(scanned) > 3
  found = [span for _, span in pipeline.with_lines('a', scanned)]
  assert len(found) == parts
  assert lines_of(found) == list(range(2, 18))


def lines_of(spans):
  return [row[0] for span in spans for row in rows_of(**span._asdict())]


def test_row_groups_without_rows_are_no_parts(tmp_path):
  path = tmp_path / 'a.parquet'
  rows = {'user_id': ['u', 'v'], 'item_id': ['i', 'j'], 'time': [1, 2]}
  table = pa.table(rows)
  with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
    for part in (table[:0], table[:1], table[:0], table[1:]):
      writer.write_table(part)
  spans = pipeline.cut_file(path)
  assert len(spans) == 2
  assert lines_of(spans) == [1, 2]


def with_beam(tmp_path, **changes):
  events = str(write(tmp_path / 'e.csv', EVENTS))
  return DataSettings(
    dataset='user_tables',
    events=(events,),
    data_dir=str(tmp_path),
    beam=True,
    **changes,
  )


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  settings = with_beam(tmp_path)
  with pytest.raises(data.DataError, match=r"pip install -e '.\[beam\]'"):
    open_data(settings, 'pretrain')
  assert not list(tmp_path.rglob('*1.0.0*'))
  # Without the flag, Beam is not needed.
  open_data(dataclasses.replace(settings, beam=False), 'pretrain')


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
    ('runner=FlinkRunner', 'not of the form --NAME=VALUE'),
    ('--help', 'it only prints help'),
  ],
)
def test_wrong_options_are_an_error_before_any_work(tmp_path, option, reason):
  settings = with_beam(tmp_path, beam_options=(option,))
  with pytest.raises(data.DataError) as error:
    open_data(settings, 'pretrain')
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
def test_beam_warns_of_unknown_options(caplog):
  beam.pipeline_options(['--no_such_flag=3'])
  assert "args: ['--no_such_flag=3']" in caplog.text


@pytest.mark.slow
def test_options_that_are_tried_do_not_swallow_the_log(monkeypatch):
  # As in a program that has not configured logging.
  monkeypatch.setattr(logging.root, 'handlers', [])
  beam.pipeline_options([])
  assert [handler.stream for handler in logging.root.handlers] == [sys.stderr]


def _fail(number):
  if number:
    raise OSError(28, 'No space left on device', f'/disk/{number}')


@pytest.mark.slow
def test_what_the_system_refuses_to_a_worker_is_no_traceback_of_beam(tmp_path):
  # TFDS sets this option, too.
  options = beam.pipeline_options(['--no_pipeline_type_check'])
  with (
    pytest.raises(OSError, match='No space left on device') as error,
    beam.errors_left_in(tmp_path),
    apache_beam.Pipeline(options=options) as begin,
  ):
    _ = (
      begin
      | apache_beam.Create([0, 1])
      | apache_beam.Map(pipeline.guarded, _fail, tmp_path)
    )
  assert '/disk/1' in str(error.value)
