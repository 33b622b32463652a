"""One's own tables: three formats, one data set, and every way to be wrong."""

import datetime
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data import tables
from adaptssr_jax.data.table_rows import Columns
from adaptssr_jax.data.table_times import BadTimeError, parse_times
from adaptssr_jax.data.user_tables import user_tables_config

COLUMNS = ('user_id', 'item_id', 'time')
# Anna's behaviours in order of time are shoe, hat, été, bag: hat and été tie.
EVENTS = [
  ('anna', 'hat', 5, 'old'),
  ('日本', 'shoe', 9, ''),
  ('anna', 'été', 5, 'old'),
  ('7', 'shoe', -2, 'new'),
  ('anna', 'shoe', 1, 'old'),
  ('anna', 'a,"b"', 6, 'old'),
  ('7', '007', 8, 'new'),
]
# Enough users for every split of every task.
EVENTS += [(f'u{row}', 'hat', row, 'new') for row in range(17)]


def write(path, rows, names=(*COLUMNS, 'age')):
  """Writes rows in the format of the path's suffix."""
  path.parent.mkdir(parents=True, exist_ok=True)
  columns = [[row[place] for row in rows] for place in range(len(names))]
  table = pa.table(dict(zip(names, columns, strict=True)))
  if path.suffix == '.csv':
    pyarrow.csv.write_csv(table, path)
  elif path.suffix == '.parquet':
    pyarrow.parquet.write_table(table, path)
  else:
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    path.write_text('\n'.join(lines) + '\n')
  return path


def load(tmp_path, events, **settings):
  config = user_tables_config(events=str(events), **settings)
  builder = tfds.builder(
    'user_tables', config=config, data_dir=tmp_path / 'prepared'
  )
  return data.load(builder)


def contents(users):
  """Every user's raw behaviours and class, whatever the split."""
  found = {}
  for split in users.splits.values():
    for row, user in enumerate(split.user_ids(np.arange(len(split.items)))):
      items = [users.vocabulary.items[item - 1] for item in split.items[row]]
      label = None
      if split.label is not None:
        label = users.vocabulary.labels[split.label[row]]
      assert user not in found
      found[user] = (items, label)
  return found


def columns_of(users):
  return {
    name: (
      split.user_id.values.tolist(),
      split.items.values.tolist(),
      split.items.offsets.tolist(),
      None if split.label is None else split.label.tolist(),
    )
    for name, split in users.splits.items()
  }, users.vocabulary


def error_of(tmp_path, events, **settings):
  """The message of an error that leaves nothing prepared behind."""
  with pytest.raises(data.DataError) as error:
    load(tmp_path, events, **settings)
  assert not list((tmp_path / 'prepared').rglob('*1.0.0*'))
  return str(error.value)


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_behaviours_are_in_order_of_time_then_of_rows(tmp_path, suffix):
  users = load(tmp_path, write(tmp_path / f'e.{suffix}', EVENTS))
  found = contents(users)
  assert len(found) == 20
  assert found['anna'] == (['shoe', 'hat', 'été', 'a,"b"'], None)
  assert found['7'] == (['shoe', '007'], None)
  assert found['日本'] == (['shoe'], None)
  assert list(users.vocabulary.items) == [
    'hat',
    'shoe',
    'été',
    'a,"b"',
    '007',
  ]


@pytest.mark.parametrize('task', ['pretrain', 'age'])
def test_all_formats_give_the_same_data_set(tmp_path, task):
  found = []
  for suffix in ('csv', 'parquet', 'jsonl', 'ndjson'):
    path = write(tmp_path / f'e.{suffix}', EVENTS)
    found.append(
      columns_of(load(tmp_path, path, label_column='age', task=task))
    )
  assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_integer_ids_are_text_and_labels_sort_by_value(tmp_path, suffix):
  rows = [
    (10 + row % 9, row % 4, float(row), row % 12 - 1) for row in range(36)
  ]
  rows = [(user, item, time, user - 11) for user, item, time, _ in rows]
  path = write(tmp_path / f'e.{suffix}', rows)
  users = load(tmp_path, path, label_column='age')
  assert list(users.vocabulary.labels) == [str(age) for age in range(-1, 8)]
  assert contents(users)['12'] == (['2', '3', '0', '1'], '1')


def test_labels_that_are_not_all_integers_sort_as_text(tmp_path):
  rows = [(f'u{row}', 'a', 0, ('10', '9', 'x')[row % 3]) for row in range(12)]
  users = load(tmp_path, write(tmp_path / 'e.csv', rows), label_column='age')
  assert list(users.vocabulary.labels) == ['10', '9', 'x']


def test_splits_are_by_user_and_do_not_change(tmp_path):
  path = write(tmp_path / 'e.csv', EVENTS)
  pretrain = load(tmp_path, path)
  sizes = {name: len(s.items) for name, s in pretrain.splits.items()}
  assert sizes == {'train': 18, 'validation': 2}
  age = load(tmp_path, path, label_column='age')
  sizes = {name: len(s.items) for name, s in age.splits.items()}
  # 19 labelled users: ends at 11.4 and 15.2.
  assert sizes == {'train': 11, 'validation': 4, 'test': 4}
  assert '日本' in contents(pretrain)
  assert '日本' not in contents(age)
  again = load(tmp_path / 'again', path, label_column='age')
  assert columns_of(again) == columns_of(age)


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_labels_of_their_own_table_equal_those_in_the_events(tmp_path, suffix):
  events = write(tmp_path / 'e.parquet', EVENTS)
  of_user = {row[0]: row[3] for row in EVENTS if row[3]}
  # Rows may repeat, and may be of users without behaviours.
  rows = [*of_user.items(), ('anna', 'old'), ('stranger', 'other')]
  labels = write(tmp_path / f'l.{suffix}', rows[::-1], ('user_id', 'age'))
  own = load(tmp_path, events, labels=str(labels), label_column='age')
  inside = load(tmp_path, events, label_column='age')
  assert columns_of(own) == columns_of(inside)


def test_files_are_read_one_after_the_other(tmp_path):
  write(tmp_path / 'e1.csv', EVENTS[:3])
  write(tmp_path / 'e2.jsonl', EVENTS[3:9])
  write(tmp_path / 'e3.parquet', EVENTS[9:])
  whole = columns_of(load(tmp_path, write(tmp_path / 'all.csv', EVENTS)))
  assert columns_of(load(tmp_path, tmp_path / 'e?.*')) == whole
  listed = ','.join(
    str(tmp_path / name) for name in ('e1.csv', 'e2.jsonl', 'e3.parquet')
  )
  assert columns_of(load(tmp_path, listed)) == whole


def test_other_column_names_and_more_columns(tmp_path):
  names = ('junk', 'when', 'what', 'who')
  rows = [('x', row[2], row[1], row[0]) for row in EVENTS]
  path = write(tmp_path / 'e.csv', rows, names)
  users = load(
    tmp_path,
    path,
    user_column='who',
    item_column='what',
    time_column='when',
  )
  plain = load(tmp_path, write(tmp_path / 'plain.csv', EVENTS))
  assert columns_of(users) == columns_of(plain)


# Each column of times puts b before a before c.
TIMES = {
  'integers': (10**18 + 1, 10**18, 10**18 + 2),
  'floats': (1.5, -2.5, 1e3),
  'mixed numbers': ('2', '1.5', '1e1'),
  'dates': ('2020-01-02', '2020-01-01', '2020-02-01'),
  'timestamps': (
    '2020-01-01T00:00:00.000000002',
    '2020-01-01 00:00:00.000000001',
    '2020-01-01T00:00:01',
  ),
  'zones': ('2020-01-01T10:00:00Z', '2020-01-01T11:00+02:00', '2021-01-01T00Z'),
  'some zones': ('2020-01-01T10:00', '2020-01-01T11:00+02:00', '2021-01-01'),
}


@pytest.mark.parametrize('kind', TIMES)
@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_times_may_be_numbers_or_timestamps(tmp_path, suffix, kind):
  rows = [
    (f'u{user}', item, time)
    for user in range(10)
    for item, time in zip('abc', TIMES[kind], strict=True)
  ]
  users = load(tmp_path, write(tmp_path / f'e.{suffix}', rows, COLUMNS))
  assert {tuple(row[0]) for row in contents(users).values()} == {
    ('b', 'a', 'c')
  }


@pytest.mark.parametrize(
  'type_',
  [
    pa.timestamp('s'),
    pa.timestamp('us', 'Asia/Tokyo'),
    pa.date32(),
    pa.date64(),
  ],
)
def test_times_of_parquet_types_become_nanoseconds(type_):
  moments = [datetime.datetime(2020, 1, day) for day in (2, 1)]
  cells = pa.chunked_array([pa.array(moments).cast(pa.timestamp('s'))])
  times = parse_times(cells.cast(type_))
  assert times.kind == 'timestamps'
  assert times.values.tolist() == [1577923200 * 10**9, 1577836800 * 10**9]


@pytest.mark.parametrize(
  ('cells', 'row'),
  [
    (pa.array([1.0, float('nan')]), 1),
    (pa.array([1.0, 2.0, float('inf')]), 2),
    (pa.array([0, 10**12], pa.timestamp('s')), 1),
    (pa.array(['1', 'x'], tables.TEXT), 1),
    (pa.array(['1', '2020-01-01'], tables.TEXT), 1),
    (pa.array(['2020-01-01', '5'], tables.TEXT), 1),
    (pa.array(['2020-01-01', '2020-13-01'], tables.TEXT), 1),
    (pa.array(['2020-01-01', '9999-12-31'], tables.TEXT), 1),
    (pa.array(['1', 'nan'], tables.TEXT), 1),
    (pa.array(['x', '1'], tables.TEXT), 0),
    (pa.array([True]), 0),
  ],
)
def test_a_time_that_does_not_parse_has_its_row(cells, row):
  with pytest.raises(BadTimeError) as error:
    parse_times(pa.chunked_array([cells]))
  assert error.value.row == row


def test_opening_again_reads_what_is_prepared(tmp_path):
  path = write(tmp_path / 'e.csv', EVENTS)
  config = user_tables_config(events=str(path), label_column='age')
  first = load(tmp_path, path, label_column='age')
  builder = tfds.builder(
    'user_tables', config=config, data_dir=tmp_path / 'prepared'
  )
  # Restored from the files: nothing has been read from the tables yet.
  assert list(builder.info.metadata['labels']) == ['new', 'old']
  assert builder.info.metadata['source'] == str(path)
  assert builder.info.splits['train'].num_examples == 11
  path.unlink()
  assert columns_of(data.load(builder)) == columns_of(first)


def test_the_name_follows_the_contents_the_columns_and_the_task(tmp_path):
  path = write(tmp_path / 'e.csv', EVENTS)
  labels = write(tmp_path / 'l.csv', [('anna', 'x')], ('user_id', 'age'))

  def name(events=path, **settings):
    return user_tables_config(events=str(events), **settings).name

  moved = shutil.copy(path, tmp_path / 'moved.csv')
  assert name() == name(moved)
  assert name() == name(label_column='age', task='pretrain')
  assert name(task='age') == name(label_column='age')
  others = [
    name(),
    name(item_column='age'),
    name(f'{path},{path}'),
    name(label_column='age'),
    name(label_column='été'),
    name(label_column='age', labels=str(labels)),
  ]
  stat = os.stat(path)
  text = path.read_text()
  path.write_text(text.replace('shoe', 'boot'))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert os.stat(path).st_size == stat.st_size
  others.append(name())
  assert len(set(others)) == len(others)
  assert name(label_column='été').startswith('_t_')


def test_files_read_in_bulk_and_row_by_row_are_the_same(tmp_path, monkeypatch):
  rows = [(*row[:2], row[2] + 0.5, row[3]) for row in EVENTS]
  paths = [write(tmp_path / f'e.{suffix}', rows) for suffix in ('csv', 'jsonl')]
  columns = Columns(('user_id', 'age'), 'time')
  bulk = [tables.read_table(path, columns).cells for path in paths]

  def give_up(*_):
    raise ValueError

  monkeypatch.setattr(tables, '_bulk_csv', give_up)
  monkeypatch.setattr(tables, '_bulk_json', give_up)
  monkeypatch.setattr(tables, '_CHUNK', 5)
  for path, cells in zip(paths, bulk, strict=True):
    slow = tables.read_table(path, columns).cells
    assert slow.keys() == cells.keys()
    for name in slow:
      expected = [str(cell) for cell in cells[name].to_pylist()]
      assert slow[name].to_pylist() == expected


def test_ordinary_files_are_never_read_row_by_row(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, '_collect', None)
  for suffix in ('csv', 'jsonl'):
    load(tmp_path, write(tmp_path / f'e.{suffix}', EVENTS), label_column='age')


TWELVE = [f'u{row},i,{row},x' for row in range(12)]


def csv_file(tmp_path, changes, name='e.csv'):
  """A table whose line n is changed; line 1 is the header."""
  lines = ['user_id,item_id,time,age', *TWELVE]
  for line, text in changes.items():
    lines[line - 1] = text
  path = tmp_path / name
  path.write_bytes(
    b'\n'.join(
      text if isinstance(text, bytes) else text.encode() for text in lines
    )
  )
  return path


def test_blank_lines_a_byte_order_mark_and_quoted_lines_are_fine(tmp_path):
  path = csv_file(
    tmp_path,
    {1: '\ufeffuser_id,item_id,time,age', 5: '', 7: '"u\n5","i",5,x'},
  )
  found = contents(load(tmp_path, path))
  assert len(found) == 11
  assert 'u\n5' in found
  # The line of a later error counts the lines that a quoted cell takes.
  path = csv_file(tmp_path, {5: '', 7: '"u\n5","i",5,x', 9: 'u7,,7,x'})
  assert f'{path}, line 10: ' in error_of(tmp_path / 'b', path)


CSV_ERRORS = [
  ('u3,i,3', '3 cells, but the header has 4'),
  ('u3,i,3,x,y', '5 cells'),
  (',i,3,x', "'user_id' is empty"),
  ('u3,,3,x', "'item_id' is empty"),
  ('u3,i,,x', "'time' is empty"),
  ('u3,i,soon,x', "time 'soon' is not a number"),
  ('u3,i,nan,x', 'time nan is not finite'),
  ('u3,i,2020-01-01,x', "time '2020-01-01' is not a number"),
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
  ('["u", "i", 3]', 'not a JSON object'),
  ('{"user_id": null, "item_id": "i", "time": 3}', "'user_id' is empty"),
  ('{"item_id": "i", "time": 3}', "'user_id' is empty"),
  ('{"user_id": "", "item_id": "i", "time": 3}', "'user_id' is empty"),
  ('{"user_id": "u", "item_id": ["i"], "time": 3}', "'item_id' holds a list"),
  ('{"user_id": "u", "item_id": 1.5, "time": 3}', "'item_id' holds a float"),
  ('{"user_id": "u", "item_id": "i", "time": null}', "'time' is empty"),
  ('{"user_id": "u", "item_id": "i", "time": "soon"}', "time 'soon'"),
  ('{"user_id": "u", "item_id": "i", "time": NaN}', 'not finite'),
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
  ('time', pa.array([1.0, 2.0, float('nan')]), 'row 3: time nan'),
  ('time', pa.array(['1', 'x', '3']), "row 2: time 'x'"),
  (
    'user_id',
    pa.array([b'u', b'v', b'\xff']).view(pa.string()),
    "row 3: column 'user_id' is not UTF-8",
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


def test_a_column_that_is_there_twice_is_an_error(tmp_path):
  path = csv_file(tmp_path, {1: 'user_id,item_id,time,time'})
  assert "two columns 'time'" in error_of(tmp_path, path)


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


def test_files_that_cannot_be_read_are_named(tmp_path):
  missing = tmp_path / 'none.csv'
  assert str(missing) in error_of(tmp_path, missing)
  labels = str(tmp_path / 'labels.csv')
  events = csv_file(tmp_path, {})
  settings = {'labels': labels, 'label_column': 'age'}
  assert labels in error_of(tmp_path, events, **settings)
  other = write(tmp_path / 'e.jsonl', EVENTS).rename(tmp_path / 'e.xlsx')
  assert f'{other}: unknown format' in error_of(tmp_path, other)
  (tmp_path / 'folder.csv').mkdir()
  assert 'folder.csv' in error_of(tmp_path, tmp_path / 'folder.csv')


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
    ('u1,x\nu2,\n', f"{labels}, line 3: column 'job' is empty"),
    ('u1,x\n,y\n', f"{labels}, line 3: column 'user_id' is empty"),
    (
      'u1,x\nu2,x\nu1,y\n',
      f"'x' in {labels}, line 2 and 'y' in {labels}, line 4",
    ),
    ('who,x\n', 'no user of the events has a label'),
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
  assert f'{second} holds timestamps, that of {first} numbers' in message


def test_contradicting_settings_are_errors(tmp_path):
  path = csv_file(tmp_path, {})
  for settings, reason in (
    ({'label_column': 'age', 'task': 'job'}, "'job' is neither"),
    ({'item_column': 'user_id'}, 'must be different'),
    ({'label_column': 'time'}, 'must be different'),
  ):
    assert reason in error_of(tmp_path, path, **settings)
  with pytest.raises(data.DataError, match='user_tables_config'):
    tfds.builder('user_tables', data_dir=tmp_path)
