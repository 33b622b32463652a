"""User tables: three formats give one data set."""

import csv
import decimal
import gzip
import os
import shutil
import uuid

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data.readers import lines, table_files, table_users, tables
from adaptssr_jax.data.readers.table_users import open_database, read_users
from adaptssr_jax.data.readers.tables import Columns, Tables
from adaptssr_jax.data.user_tables import user_tables_config
from tests.user_table_files import (
  COLUMNS,
  EVENTS,
  csv_file,
  error_of,
  load,
  rows_of,
  set_threads,
  write,
)


def contents(users):
  """{user: (raw items, raw label)} of all splits."""
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


@pytest.mark.parametrize('label', [None, 'age'])
def test_all_formats_give_the_same_data_set(tmp_path, label):
  found = []
  formats = 'csv parquet jsonl ndjson csv.gz json.bz2 csv.zst'
  for suffix in formats.split():
    path = write(tmp_path / f'e.{suffix}', EVENTS)
    found.append(columns_of(load(tmp_path, path, label_column=label)))
  assert len(found) == 7
  assert all(columns == found[0] for columns in found)


def test_compressed_files_are_read_in_blocks_and_several_members(
  tmp_path, monkeypatch
):
  """As of `cat a.csv.gz b.csv.gz`, or of a tool that compresses in parallel."""
  monkeypatch.setattr(lines, '_BYTES', 7)
  path = write(tmp_path / 'e.csv', EVENTS)
  whole = rows_of(path)
  text = path.read_bytes()
  path = tmp_path / 'E.CSV.GZ'
  path.write_bytes(gzip.compress(text[:50]) + gzip.compress(text[50:]))
  assert rows_of(path) == whole


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_integer_ids_are_text_and_labels_sort_by_value(tmp_path, suffix):
  rows = [
    (10 + row % 9, row % 4, float(row), row % 12 - 1) for row in range(36)
  ]
  rows = [(user, item, time, 3 * user - 33) for user, item, time, _ in rows]
  path = write(tmp_path / f'e.{suffix}', rows)
  users = load(tmp_path, path, label_column='age')
  assert list(users.vocabulary.labels) == [str(age) for age in range(-3, 24, 3)]
  assert contents(users)['12'] == (['2', '3', '0', '1'], '3')


def test_parquet_may_hold_whole_decimals_and_uuids(tmp_path):
  """Databases export integers and UUIDs in these types."""
  numbers = [decimal.Decimal(10**30), decimal.Decimal(-7)]
  ids = [uuid.UUID(int=number).bytes for number in (5, 6)]
  table = {
    'user_id': pa.array(numbers, pa.decimal128(38, 0)),
    'item_id': pa.array(ids, pa.uuid()),
    'time': pa.array([decimal.Decimal(2), decimal.Decimal(1)]),
  }
  path = tmp_path / 'e.parquet'
  pyarrow.parquet.write_table(pa.table(table), path)
  uuids = ['00000000-0000-0000-0000-00000000000' + last for last in '56']
  assert [row[:4] for row in rows_of(path)] == [
    (1, str(10**30), uuids[0], 2),
    (2, '-7', uuids[1], 1),
  ]
  with pytest.raises(data.DataError, match=r"'item_id' holds .*uuid"):
    rows_of(path, time_column='item_id')
  table['user_id'] = pa.array([decimal.Decimal('1.5')] * 2)
  pyarrow.parquet.write_table(pa.table(table), path)
  with pytest.raises(data.DataError, match="'user_id' holds decimal"):
    rows_of(path)


def test_splits_are_by_user_and_do_not_change(tmp_path):
  path = write(tmp_path / 'e.csv', EVENTS)
  pretrain = load(tmp_path, path)
  sizes = {name: len(s.items) for name, s in pretrain.splits.items()}
  assert sizes == {'train': 18, 'validation': 2}
  age = load(tmp_path, path, label_column='age')
  sizes = {name: len(s.items) for name, s in age.splits.items()}
  # 19 labelled users are split at 11.4 and 15.2.
  assert sizes == {'train': 11, 'validation': 4, 'test': 4}
  assert '日本' in contents(pretrain)
  assert '日本' not in contents(age)
  again = load(tmp_path / 'again', path, label_column='age')
  assert columns_of(again) == columns_of(age)


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_labels_of_their_own_table_equal_those_in_the_events(tmp_path, suffix):
  events = write(tmp_path / 'e.parquet', EVENTS)
  of_user = {row[0]: row[3] for row in EVENTS if row[3]}
  # Rows may be repeated, and may belong to users without behaviours.
  rows = [*of_user.items(), ('anna', 'old'), ('stranger', 'other')]
  # An empty label is none.
  rows += [('日本', '')]
  labels = write(tmp_path / f'l.{suffix}', rows[::-1], ('user_id', 'age'))
  own = load(tmp_path, events, labels=str(labels), label_column='age')
  inside = load(tmp_path, events, label_column='age')
  assert columns_of(own) == columns_of(inside)


def test_users_that_a_task_leaves_out_are_told(tmp_path):
  events = write(tmp_path / 'e.csv', EVENTS)
  users = {row[0] for row in EVENTS}
  rows = [(user, 'x') for user in sorted(users)[3:]]
  rows += [('stranger', 'x'), ('another', 'y'), ('third', '')]
  labels = write(tmp_path / 'l.csv', sorted(rows), ('user_id', 'age'))
  told = []
  config = user_tables_config(
    events=str(events), labels=str(labels), label_column='age'
  )
  builder = tfds.builder('user_tables', config=config, data_dir=tmp_path / 'd')
  data.load(builder, on_progress=told.append)
  count = len(users)
  assert told[-2:] == [
    f'users without behaviours are left out, 2 of {count - 1} with a label',
    f'users without a label are left out, 3 of {count} with behaviours',
  ]


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


def test_a_long_column_name_makes_no_long_folder_name(tmp_path):
  events = write(tmp_path / 'e.csv', EVENTS, (*COLUMNS, 'x' * 300))
  users = load(tmp_path, events, label_column='x' * 300)
  assert f'user_tables/{"x" * 50}_' in users.name
  assert list(users.vocabulary.labels) == ['new', 'old']


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


# Each column of times orders the items as b, a, c.
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
  '%m/%d/%Y': ('1/2/2000', '12/31/1999', '2/1/2000'),
}


@pytest.mark.parametrize('kind', TIMES)
@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_times_may_be_numbers_timestamps_or_of_a_format(tmp_path, suffix, kind):
  rows = [
    (f'u{user}', item, time)
    for user in range(10)
    for item, time in zip('abc', TIMES[kind], strict=True)
  ]
  time_format = kind if kind.startswith('%') else ''
  path = write(tmp_path / f'e.{suffix}', rows, COLUMNS)
  users = load(tmp_path, path, time_format=time_format)
  assert {tuple(row[0]) for row in contents(users).values()} == {
    ('b', 'a', 'c')
  }


def test_opening_again_reads_what_is_prepared(tmp_path):
  path = write(tmp_path / 'e.csv', EVENTS)
  config = user_tables_config(events=str(path), label_column='age')
  first = load(tmp_path, path, label_column='age')
  builder = tfds.builder(
    'user_tables', config=config, data_dir=tmp_path / 'prepared'
  )
  # These are restored from files; the tables have not been read.
  assert list(builder.info.metadata['labels']) == ['new', 'old']
  assert builder.info.metadata['source'] == str(path)
  assert builder.info.splits['train'].num_examples == 11
  path.unlink()
  assert columns_of(data.load(builder)) == columns_of(first)


def test_data_sets_keep_the_names_of_earlier_versions(tmp_path):
  path = str(csv_file(tmp_path, {}))
  config = user_tables_config(events=path)
  assert config.name == 'pretrain_db2ae1873c71ebe5'
  config = user_tables_config(events=path, labels=path, label_column='age')
  assert config.name == 'age_441675c5eaa64930'


def test_the_name_follows_contents_settings_and_the_task(tmp_path):
  path = write(tmp_path / 'e.csv', EVENTS)
  labels = write(tmp_path / 'l.csv', [('anna', 'x')], ('user_id', 'age'))

  def name(events=path, **settings):
    return user_tables_config(events=str(events), **settings).name

  moved = shutil.copy(path, tmp_path / 'moved.csv')
  assert name() == name(moved)
  others = [
    name(),
    name(item_column='age'),
    name(f'{path},{path}'),
    name(label_column='age'),
    name(label_column='été'),
    name(where="age = 'old'"),
    name(where="age = 'new'"),
    name(time_format='%Y'),
    name(label_column='age', labels=str(labels)),
    name(f'{path},{labels}', label_column='age'),
  ]
  stat = os.stat(path)
  text = path.read_text()
  path.write_text(text.replace('shoe', 'boot'))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert os.stat(path).st_size == stat.st_size
  others.append(name())
  assert len(set(others)) == len(others)
  assert name(label_column='été').startswith('_t_')


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_blocks_and_threads_change_nothing(tmp_path, monkeypatch, suffix):
  rows = [(f'u{n % 7}', f'i{n % 5}', n // 3) for n in range(40)]
  path = write(tmp_path / f'e.{suffix}', rows, COLUMNS)
  whole = rows_of(path)
  first = 2 if suffix == 'csv' else 1
  assert [row[0] for row in whole] == list(range(first, first + 40))
  assert [row[1:4] for row in whole] == rows
  for size, threads in ((1, 1), (37, 4), (1000, 2)):
    monkeypatch.setattr(lines, '_BYTES', size)
    for module in (table_files, tables):
      monkeypatch.setattr(module, '_ROWS', size)
    set_threads(monkeypatch, threads)
    assert rows_of(path) == whole


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_parts_of_a_file_have_each_row_once(tmp_path, suffix):
  rows = [(f'u{n}', 'été', n) for n in range(3)]
  path = write(tmp_path / f'e.{suffix}', rows, COLUMNS)
  size = path.stat().st_size
  if suffix == 'parquet':
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table, path, row_group_size=1)
    size = 3
  for step in (1, 7, 60):
    parts = [
      rows_of(path, start=start, end=start + step)
      for start in range(0, size, step)
    ]
    assert [row[1:4] for part in parts for row in part] == rows


def read(tmp_path, paths, **settings):
  texts = {'user_id': 'user_id', 'item_id': 'item_id'}
  events = Tables(paths, Columns(texts, 'time'))
  said = []
  users, vocabulary, _ = read_users(
    events, None, tmp_path / 'database', on_progress=said.append, **settings
  )
  assert not list((tmp_path / 'database').iterdir())
  return users, vocabulary, said


def test_what_does_not_fit_the_memory_is_sorted_on_the_disk(
  tmp_path, monkeypatch
):
  random = np.random.default_rng(0)
  user, item, time = random.integers(0, (5000, 900, 50), (400_000, 3)).T
  table = pa.table(
    {
      'user_id': pa.array(user).cast(pa.string()),
      'item_id': pa.array(item).cast(pa.string()),
      'time': time,
    }
  )
  pyarrow.csv.write_csv(table, tmp_path / 'a.csv')
  pyarrow.parquet.write_table(table, tmp_path / 'b.parquet')
  paths = [tmp_path / 'a.csv', tmp_path / 'b.parquet']
  found = []
  monkeypatch.setattr(table_users, '_SECONDS', 0.0)
  for limit, threads in (('40MB', 1), ('', 4)):
    set_threads(monkeypatch, threads)
    users, vocabulary, said = read(tmp_path, paths, memory_limit=limit)
    assert f'Read 400,000 rows of {paths[1]}...' in said
    assert said[-1] == 'Sorting 800,000 behaviours of 5,000 users...'
    found.append((users.user_id, vocabulary, users.items.values.tolist()))
  assert found[0] == found[1]
  # Equal times keep the order of the rows.
  user, item, time = (np.tile(column, 2) for column in (user, item, time))
  chosen = np.flatnonzero(user == user[0])
  chosen = chosen[np.argsort(time[chosen], kind='stable')]
  names = [vocabulary.items[number - 1] for number in users.items[0]]
  assert names == item[chosen].astype(str).tolist()


def test_a_memory_limit_that_cannot_be_used_is_an_error(tmp_path):
  path = write(tmp_path / 'e.csv', EVENTS)
  for limit, reason in (('much', 'memory limit'), ('1MB', 'more memory')):
    with pytest.raises(data.DataError, match=reason):
      read(tmp_path, [path], memory_limit=limit)


@pytest.mark.parametrize(
  'error', [duckdb.IOException, duckdb.TransactionException]
)
def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path, error):
  with pytest.raises(OSError, match='full'), open_database(tmp_path):
    raise error('the disk is full')
  assert not list(tmp_path.iterdir())


def test_ordinary_files_are_never_read_row_by_row(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, 'csv_rows', None)
  for suffix in ('csv', 'jsonl'):
    path = write(tmp_path / f'e.{suffix}', EVENTS[6:])
    assert len(rows_of(path)) == len(EVENTS[6:])


def test_blank_lines_a_byte_order_mark_and_quoted_lines_are_fine(tmp_path):
  path = csv_file(
    tmp_path,
    {1: '\ufeffuser_id,item_id,time,age', 5: '', 7: '"u\n5","i",5,x'},
  )
  found = contents(load(tmp_path, path))
  assert len(found) == 11
  assert 'u\n5' in found
  # Line numbers include the lines within a quoted cell.
  path = csv_file(tmp_path, {5: '', 7: '"u\n5","i",5,x', 9: 'u7,,7,x'})
  assert f'{path}, line 10: ' in error_of(tmp_path / 'b', path)


@pytest.mark.parametrize('bytes_at_once', [1, 20, 1000])
@pytest.mark.parametrize(
  'line',
  [
    'a,b,1', '"a","b","1"', '"a,""b""","c",1\r', '"a\nb",c,1', 'a"b",c,1',
    'a, "b",1', ' a ,b, 1 ', '5" nail,b,1', '"a\r\nb",c,1',
    '\x00,b,1', 'ä,"ß",1', '\n\na,b,1\n\n',
  ],
)  # fmt: skip
def test_cells_are_those_that_python_finds(
  tmp_path, monkeypatch, line, bytes_at_once
):
  monkeypatch.setattr(lines, '_BYTES', bytes_at_once)
  path = tmp_path / 'e.csv'
  path.write_bytes(f'user_id,item_id,time\nu,i,0\n{line}\nv,j,2'.encode())
  with path.open(newline='') as file:
    _, *expected = filter(None, csv.reader(file, strict=True))
  found = [[*row[1:3], row[3]] for row in rows_of(path)]
  assert found == [[user, item, int(time)] for user, item, time in expected]


def test_a_time_that_is_not_of_the_format_is_named(tmp_path):
  path = csv_file(tmp_path, {})
  message = error_of(tmp_path, path, time_format='%m/%d/%Y')
  assert f"{path}, line 2: time '0' is not in the format %m/%d/%Y" in message


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_a_condition_leaves_rows_out(tmp_path, suffix):
  # Rows that are left out are not checked.
  rows = [(*row, 'view', "it's") for row in EVENTS]
  rows += [
    ('u1', '', 1, 'new', 'view', 'no'),
    ('u1', 'x', 2, 'new', None, "it's"),
  ]
  names = (*COLUMNS, 'age', 'event', 'line')
  path = write(tmp_path / f'e.{suffix}', rows[::-1], names)
  where = "event = 'view' and \"line\" = 'it''s' -- only these"
  users = load(tmp_path, path, label_column='age', where=where)
  plain = write(tmp_path / f'plain.{suffix}', EVENTS[::-1])
  assert columns_of(users) == columns_of(
    load(tmp_path, plain, label_column='age')
  )
  few = load(tmp_path / 'few', path, where="time::double >= 5 and event <> ''")
  assert contents(few)['anna'] == (['été', 'hat', 'a,"b"'], None)


@pytest.mark.parametrize('suffix', ['csv', 'parquet', 'jsonl'])
def test_a_condition_that_cannot_be_used_is_one_error(tmp_path, suffix):
  path = write(tmp_path / f'e.{suffix}', EVENTS)
  for where, reason in (
    ('age = ', 'syntax error'),
    ("event = 'view'", "no column 'event'; its columns are 'user_id'"),
    ('age = "old"', "no column 'old'"),
    ('age > 3', "'age > 3' cannot be used"),
    ('age::int > 3', 'Could not convert'),
    ('sum(age)', "'sum(age)' cannot be used"),
    ('no_such(age)', "'no_such(age)' cannot be used"),
    ("age = 'older'", f'no row of {path} meets the condition'),
    ('true); select (1', 'several statements'),
    ("age = 'old' or AGE = 'new'", 'differ only in case'),
    ('age in (select age from events)', 'Table with name events does not'),
  ):
    assert reason in error_of(tmp_path, path, where=where)


def test_a_condition_on_what_duckdb_cannot_read_is_one_error(tmp_path):
  columns = {'user_id': ['u'], 'item_id': ['i'], 'time': [1]}
  columns['price'] = pa.array([decimal.Decimal(1)], pa.decimal256(60, 2))
  pyarrow.parquet.write_table(pa.table(columns), tmp_path / 'e.parquet')
  message = error_of(tmp_path, tmp_path / 'e.parquet', where='price > 0')
  assert "'price > 0' cannot be used: Not implemented" in message
