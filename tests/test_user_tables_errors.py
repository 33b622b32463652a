"""Errors of user tables name file, line and reason; no data set is left."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data.readers.table_files import json_header
from tests.user_table_files import (
  COLUMNS,
  EVENTS,
  compress,
  csv_file,
  error_of,
  write,
)

CSV_ERRORS = [
  ('u3,i,3', '3 cells, but the header has 4'),
  ('u3,i,3,x,y', '5 cells'),
  ('u3,i,3,x,', '5 cells'),
  ('"u3" ,i,3,x', 'malformed CSV'),
  (',i,3,x', "'user_id' is empty"),
  ('u3,,3,x', "'item_id' is empty"),
  ('u3,i,,x', "'time' is empty"),
  ('u3,i,soon,x', "time 'soon' is neither a finite number"),
  ('u3,i,nan,x', "time 'nan' is neither"),
  ('u3,i,2020-01-01,x', 'the time is not a number, as it is in'),
  (b'u3,\xff,3,x', 'not UTF-8'),
  ('u3,i,3,"x', 'malformed CSV'),
]


@pytest.mark.parametrize(('bad', 'reason'), CSV_ERRORS)
def test_a_bad_line_of_csv_is_named(tmp_path, bad, reason):
  path = csv_file(tmp_path, {5: bad})
  message = error_of(tmp_path, path, label_column='age')
  assert f'{path}, line 5: ' in message
  assert reason in message


JSON_ERRORS = [
  ('{"user_id": "u", "item_id": "i", "time": 3', 'malformed JSON'),
  ('["u", "i", 3]', 'not a JSON object; write one per line'),
  ('{"user_id": null, "item_id": "i", "time": 3}', "'user_id' is empty"),
  ('{"item_id": "i", "time": 3}', "'user_id' is empty"),
  ('{"user_id": "", "item_id": "i", "time": 3}', "'user_id' is empty"),
  ('{"user_id": "u", "item_id": ["i"], "time": 3}', "'item_id' is no text"),
  ('{"user_id": "u", "item_id": 1.5, "time": 3}', 'but DOUBLE'),
  ('{"user_id": "u", "item_id": "i", "time": null}', "'time' is empty"),
  ('{"user_id": "u", "item_id": "i", "time": "soon"}', "time 'soon'"),
  ('{"user_id": "u", "item_id": "i", "time": NaN}', "time 'NaN' is neither"),
  ('{"user_id": "u", "item_id": "i", "time": true}', "time 'true'"),
  ('{"user_id": "\\ud800", "item_id": "i", "time": 3}', 'surrogate'),
  (b'{"user_id": "\xff", "item_id": "i", "time": 3}', 'not UTF-8'),
]


@pytest.mark.parametrize('time', ['1', '1.5'])
@pytest.mark.parametrize(('bad', 'reason'), JSON_ERRORS)
def test_a_bad_line_of_json_is_named(tmp_path, bad, reason, time):
  good = '{"user_id": "u%d", "item_id": "i", "time": %s}'
  lines = [(good % (row, time)).encode() for row in range(12)]
  lines[3] = b''
  lines[4] = bad if isinstance(bad, bytes) else bad.encode()
  path = tmp_path / 'e.jsonl'
  path.write_bytes(b'\n'.join(lines))
  message = error_of(tmp_path, path)
  assert f'{path}, line 5: ' in message
  assert reason in message


PARQUET_ERRORS = [
  ('user_id', pa.array(['u', None, 'w']), "row 2: column 'user_id' is empty"),
  ('item_id', pa.array([1, 2, None]), "row 3: column 'item_id' is empty"),
  ('item_id', pa.array([1.0, 2.0, 3.0]), "column 'item_id' holds double"),
  ('time', pa.array([1.0, 2.0, float('nan')]), "row 3: time 'nan'"),
  ('time', pa.array(['1', 'x', '3']), "row 2: time 'x'"),
  (
    'user_id',
    pa.array([b'u', b'v', b'\xff']).view(pa.string()),
    'row 3: not UTF-8',
  ),
]


@pytest.mark.parametrize(('name', 'cells', 'reason'), PARQUET_ERRORS)
def test_a_bad_row_of_parquet_is_named(tmp_path, name, cells, reason):
  columns = {
    'user_id': pa.array(['u', 'v', 'w']),
    'item_id': pa.array(['a', 'b', 'c']).dictionary_encode(),
    'time': pa.array([1, 2, 3]),
  }
  path = tmp_path / 'e.parquet'
  pyarrow.parquet.write_table(pa.table(columns | {name: cells}), path)
  message = error_of(tmp_path, path)
  assert str(path) in message
  assert reason in message


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_a_missing_column_names_those_there_are(tmp_path, suffix):
  path = write(tmp_path / f'e.{suffix}', EVENTS)
  message = error_of(tmp_path, path, item_column='product')
  assert str(path) in message
  assert "no column 'product'" in message
  assert "'user_id', 'item_id', 'time', 'age'" in message


def test_a_header_after_a_blank_line_is_asked_for(tmp_path):
  path = csv_file(tmp_path, {1: '\nuser_id,item_id,time,age'})
  assert f'{path}, line 1 is blank: put' in error_of(tmp_path, path)


def test_a_lone_carriage_return_is_told_in_plain_words(tmp_path):
  for line, bad in ((1, 'user_id,item_id,time\ru,i,3'), (5, 'u3,i,3\rx,x')):
    path = csv_file(tmp_path, {line: bad})
    message = error_of(tmp_path, path)
    assert f'{path}, line {line}: malformed CSV: a carriage return' in message
    assert 'universal-newline' not in message


def test_of_many_objects_only_wanted_names_are_kept(tmp_path):
  path = tmp_path / 'e.jsonl'
  lines = [{f'{row}': row, 'item_id': row} for row in range(9)]
  lines.append({'user_id': 'u', 'item_id': 'x'})
  path.write_text('\n'.join(map(json.dumps, lines)))
  header = json_header(path, ['user_id', 'item_id'])
  assert header == ['0', 'item_id', 'user_id']


def test_a_column_that_is_there_twice_is_an_error(tmp_path):
  path = csv_file(tmp_path, {1: 'user_id,item_id,time,time'})
  assert "two columns 'time'" in error_of(tmp_path, path)


@pytest.mark.parametrize('separator', [';', '\t'])
def test_cells_that_are_not_separated_by_commas_are_told(tmp_path, separator):
  path = tmp_path / 'e.csv'
  rows = [COLUMNS, ('u', 'i', '3')]
  path.write_text(''.join(f'{separator.join(row)}\n' for row in rows))
  assert error_of(tmp_path, path).endswith('; separate cells by commas')


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_a_file_without_rows_or_of_another_format_is_an_error(tmp_path, suffix):
  path = tmp_path / f'e.{suffix}'
  path.touch()
  assert str(path) in error_of(tmp_path, path)
  path.write_bytes(b'\x89PNG\r\n')
  assert str(path) in error_of(tmp_path, path)
  path = tmp_path / 'none.csv'
  path.write_text('user_id,item_id,time\n')
  assert error_of(tmp_path, path) == f'{path} has no rows'


def test_errors_of_compressed_files_name_their_line_or_damage(tmp_path):
  path = compress(csv_file(tmp_path, {9: 'u,i,soon,x'}), '.gz')
  assert f'{path}, line 9: time' in error_of(tmp_path, path)
  path = compress(csv_file(tmp_path, {}), '.gz')
  path.write_bytes(path.read_bytes()[:-12])
  assert f'{path} cannot be read: ' in error_of(tmp_path, path)
  path.write_bytes(b'user_id,item_id,time\nu,i,1\n')
  assert f'{path} cannot be read: ' in error_of(tmp_path, path)
  path.write_bytes(b'')
  assert 'columns are none: it is empty' in error_of(tmp_path, path)
  # A span of a Parquet file must be found in it, so it is not compressed.
  path = path.rename(tmp_path / 'e.parquet.gz')
  assert f'{path}: unknown format' in error_of(tmp_path, path)


def test_files_that_cannot_be_read_are_named(tmp_path):
  missing = tmp_path / 'none.csv'
  assert str(missing) in error_of(tmp_path, missing)
  labels = str(tmp_path / 'labels.csv')
  events = csv_file(tmp_path, {})
  settings = {'labels': labels, 'label_column': 'age'}
  assert labels in error_of(tmp_path, events, **settings)
  other = write(tmp_path / 'e.jsonl', EVENTS).rename(tmp_path / 'e.xlsx')
  assert f'{other}: unknown format' in error_of(tmp_path, other)
  packed = tmp_path / 'e.csv.xz'
  packed.touch()
  assert '.csv' in error_of(tmp_path, packed)
  assert error_of(tmp_path, packed).endswith(
    'in one of these and .gz, .bz2, .zst'
  )
  # A device, which never ends, is refused as well.
  assert 'unknown format' in error_of(tmp_path, '/dev/zero')
  (tmp_path / 'endless.csv').symlink_to('/dev/zero')
  assert 'no such file' in error_of(tmp_path, tmp_path / 'endless.csv')
  (tmp_path / 'folder.csv').mkdir()
  folder = tmp_path / 'folder.csv'
  assert f"{folder} is a folder; give its files, such as '{folder}/" in (
    error_of(tmp_path, folder)
  )


def test_a_relative_path_is_named_with_its_folder(tmp_path, monkeypatch):
  """A run may be resumed from another working directory."""
  monkeypatch.chdir(tmp_path)
  begin = "there is no file 'day*.csv' in the folder "
  assert error_of(tmp_path, 'day*.csv').startswith(f'{begin}{tmp_path};')
  assert error_of(tmp_path, '').startswith("there is no file '' in the folder")
  message = error_of(tmp_path, f'{tmp_path}/day*.csv')
  assert message.startswith(f"there is no file '{tmp_path}/day*.csv';")


@pytest.mark.parametrize('before', ['x', ''])
def test_a_label_that_changes_names_the_user_and_both_lines(tmp_path, before):
  path = csv_file(
    tmp_path, {4: f'u7,i,3,{before}', 11: 'u7,i,3,y', 9: 'z,i,1,x'}
  )
  message = error_of(tmp_path, path, label_column='age')
  assert "user 'u7'" in message
  assert f"{before!r} in {path}, line 4 and 'y' in {path}, line 11" in message


def test_a_label_that_changes_between_files_names_both(tmp_path):
  first = csv_file(tmp_path, {}, 'e1.csv')
  second = csv_file(tmp_path, {4: 'u7,i,3,y'}, 'e2.csv')
  message = error_of(tmp_path, f'{first},{second}', label_column='age')
  assert f"'x' in {first}, line 9 and 'y' in {second}, line 4" in message


def test_errors_of_a_table_of_labels(tmp_path):
  events = csv_file(tmp_path, {})
  labels = tmp_path / 'l.csv'
  settings = {'labels': str(labels), 'label_column': 'job'}
  for text, reason in (
    ('u1,x\n,y\n', f"{labels}, line 3: column 'user_id' is empty"),
    (
      'u1,x\nu2,x\nu1,y\n',
      f"'x' in {labels}, line 2 and 'y' in {labels}, line 4",
    ),
    ('u1,\nu1,y\n', f"'' in {labels}, line 2 and 'y' in {labels}, line 3"),
    ('who,x\n', 'no user of the events has a label'),
    ('u1,\n', 'no user of the events has a label'),
  ):
    labels.write_text(f'user_id,job\n{text}')
    assert reason in error_of(tmp_path, events, **settings)
  labels.write_text('user_id,age\nu1,x\n')
  message = error_of(tmp_path, events, **settings)
  assert f"{labels}: no column 'job'" in message


def test_files_whose_times_differ_in_kind_are_an_error(tmp_path):
  first = csv_file(tmp_path, {}, 'e1.csv')
  rows = [('a', 'b', '2020-01-01')]
  second = write(tmp_path / 'e2.csv', rows, COLUMNS)
  message = error_of(tmp_path, f'{first},{second}')
  assert f'{second}, line 2: the time is not a number, as it is in' in message
  assert f'{first}, line 2' in message


@pytest.mark.parametrize('suffix', ['csv', 'jsonl'])
def test_integers_that_other_times_would_round_are_an_error(tmp_path, suffix):
  rows = [('a', 'b', time) for time in (0.5, 2**53 + 1)]
  text = '\n'.join(
    ['user_id,item_id,time', *(f'{u},{i},{time}' for u, i, time in rows)]
    if suffix == 'csv'
    else [
      f'{{"user_id": "{u}", "item_id": "{i}", "time": {time}}}'
      for u, i, time in rows
    ]
  )
  path = tmp_path / f'e.{suffix}'
  path.write_text(text)
  line = text.count('\n') + 1
  assert f'{path}, line {line}: time' in error_of(tmp_path, path)
  # Each file alone is valid.
  first = write(tmp_path / f'1.{suffix}', rows[:1], COLUMNS)
  second = write(tmp_path / f'2.{suffix}', rows[1:], COLUMNS)
  message = error_of(tmp_path, f'{first},{second}')
  assert f'{second}, line {line - 1}: time {2**53 + 1} is' in message
  assert 'would be rounded' in message


def test_a_column_name_that_is_not_utf8_is_an_error(tmp_path):
  path = write(tmp_path / 'e.parquet', EVENTS)
  path.write_bytes(path.read_bytes().replace(b'age', b'a\xffe'))
  assert f'{path}: the name ' in error_of(tmp_path, path)


def test_contradicting_settings_are_errors(tmp_path):
  path = csv_file(tmp_path, {})
  for settings, reason in (
    ({'item_column': 'user_id'}, 'must be different'),
    ({'label_column': 'time'}, 'must be different'),
  ):
    assert reason in error_of(tmp_path, path, **settings)
  with pytest.raises(data.DataError, match='user_tables_config'):
    tfds.builder('user_tables', data_dir=tmp_path)
