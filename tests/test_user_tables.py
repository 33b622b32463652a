"""One's own tables: three formats, one data set."""

import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data.user_tables import user_tables_config
from tests.user_table_files import (
  COLUMNS,
  EVENTS,
  csv_file,
  error_of,
  load,
  write,
)


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
  rows = [(user, item, time, 3 * user - 33) for user, item, time, _ in rows]
  path = write(tmp_path / f'e.{suffix}', rows)
  users = load(tmp_path, path, label_column='age')
  assert list(users.vocabulary.labels) == [str(age) for age in range(-3, 24, 3)]
  assert contents(users)['12'] == (['2', '3', '0', '1'], '3')


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
    path = write(tmp_path / f'e.{suffix}', EVENTS)
    users = load(tmp_path, path, label_column='age')
    assert set(users.splits) == {'train', 'validation', 'test'}


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


@pytest.mark.parametrize('block', [1, 3, 1000])
@pytest.mark.parametrize(
  ('text', 'plain'),
  [
    ('a,b', True),
    ('"a,""b"""\r\n"c","",x\n""', True),
    ('"a\nb",c', True),
    ('a"b"', False),
    ('""b', False),
    ('"a" ,b', False),
    ('x,"a"b', False),
    ('a\r\nb\r\n', True),
    ('a\rb', False),
    ('a\r\r\n', False),
    ('a\r', False),
  ],
)
def test_unusual_marks_and_line_ends_are_seen(
  tmp_path, monkeypatch, text, plain, block
):
  monkeypatch.setattr(table_rows, '_BLOCK', block)
  (tmp_path / 'a.csv').write_bytes(text.encode())
  assert table_rows.is_plain_csv(tmp_path / 'a.csv') is plain
