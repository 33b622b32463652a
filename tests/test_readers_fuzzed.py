"""Randomly damaged files: a correct data set, or an error that names the line.

`FUZZ_EXAMPLES=5000 pytest tests/test_readers_fuzzed.py` looks harder.
"""

import csv
import datetime
import io
import json
import os
import pathlib
import re
import shutil
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptssr_jax import data
from adaptssr_jax.data import complete_journey, ta_feng
from adaptssr_jax.data.readers import (
  tables,
)
from adaptssr_jax.data.readers.movielens_files import EDITIONS, read
from adaptssr_jax.data.user_tables import user_tables_config
from tests.synthetic_movielens import grouplens_files, wheel_files, write_zip
from tests.synthetic_purchases import journey_files, ta_feng_csv

EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', 30))
fuzzed = settings(
  derandomize='FUZZ_EXAMPLES' not in os.environ,
  max_examples=EXAMPLES,
  deadline=None,
  database=None,
  suppress_health_check=list(HealthCheck),
)

ROWS = [
  (f'u{row % 14}', f'i{row % 5}', row, 'xyz'[row % 14 % 3]) for row in range(28)
]
NAMES = ('user_id', 'item_id', 'time', 'age')
CSV = (
  '\n'.join(map(','.join, [NAMES, *[map(str, row) for row in ROWS]]))
).encode()
JSONL = '\n'.join(
  json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS
).encode()
TTL = '\n'.join(f'{900 - row},{row + 1},7' for row in range(14)).encode()
CLICK = b''.join(line + b',,5,6\n' for line in TTL.split(b'\n'))

PLACE = re.compile(r', (line|row) [0-9]+\b')
# Errors of a whole file, which name no line or row.
WHOLE_FILE = re.compile(
  'no column|two columns|column .* holds|has no rows|has no users|has a label|'
  'no readable Parquet|name .* of a column|cannot be read|is refused|'
  'has no ml-1m|'
  r'none: it is empty|\.dat is empty|\.csv in .* is empty|is in .* and not in'
)

# Bytes that tend to break readers.
PIECES = [
  b'\x00', b'\xff', b'\xef\xbb\xbf', b'\xed\xa0\x80', b'"', b'""', b'\'', b',',
  b',,', b'\n', b'\r', b'\r\n', b'\n\n', b'\x85', b'\xe2\x80\xa8', b'\t', b'::',
  b'|', b'-1', b'1e999', b'nan', b'99999999999999999999', b'null', b'{', b'}',
  b'[', b'[' * 2000, b'{"a":' * 2000, b'x' * 200_000, b'\\ud800', b'\\', b'1.5',
  b'2020-01-01', b'9999-12-31T23:59:59', b'0001-01-01', b'true', b'user_id',
]  # fmt: skip


def changes(size):
  """Draws changes (kind, offset, bytes) of a file."""
  place = st.integers(0, size)
  change = st.one_of(
    st.tuples(st.just('cut'), place, st.just(b'')),
    st.tuples(
      st.just('flip'), place, st.integers(1, 255).map(lambda b: bytes([b]))
    ),
    st.tuples(st.just('insert'), place, st.sampled_from(PIECES)),
    st.tuples(st.just('insert'), place, st.binary(max_size=6)),
    st.tuples(st.just('put'), place, st.sampled_from(PIECES)),
    st.tuples(st.just('repeat'), place, st.just(b'')),
    st.tuples(st.just('drop'), place, st.integers(1, 40).map(bytes)),
  )
  return st.lists(change, min_size=1, max_size=3)


def damaged(whole, these):
  for kind, place, piece in these:
    before, after = whole[:place], whole[place:]
    if kind == 'cut':
      whole = before
    elif kind == 'flip' and after:
      whole = before + bytes([after[0] ^ piece[0]]) + after[1:]
    elif kind == 'insert':
      whole = before + piece + after
    elif kind == 'put':
      whole = before + piece + after[len(piece) :]
    elif kind == 'repeat':
      whole = before + after[:30] + after
    elif kind == 'drop':
      whole = before + after[len(piece) :]
  return whole


@pytest.fixture(name='folder', scope='module')
def _folder():
  folder = tempfile.mkdtemp()
  yield pathlib.Path(folder)
  shutil.rmtree(folder)


def check_right_or_refused(
  folder, paths, name, *, config=None, manual_dir=None
):
  """The data set, or None after an error that names a file."""
  prepared = folder / 'prepared'
  shutil.rmtree(prepared, ignore_errors=True)
  try:
    if callable(config):
      config = config()
    builder = tfds.builder(
      name, data_dir=prepared, **({'config': config} if config else {})
    )
    users = data.load(builder, manual_dir=manual_dir)
  except data.DataError as error:
    message = str(error)
  else:
    check(users)
    return users
  assert any(str(path) in message for path in paths), message
  assert len(message) < 1500
  assert PLACE.search(message) or WHOLE_FILE.search(message), message
  left = [path for path in prepared.rglob('*') if path.is_file()]
  assert {path.name for path in left} <= {'.lock'}, left
  return None


def check(users):
  """Checks the invariants of every data set."""
  for split in users.splits.values():
    assert len(split.items)
    assert split.items.lengths.min() >= 1
    assert split.items.values.min() >= 1
    assert split.items.values.max() <= len(users.vocabulary.items)
    split.user_ids(np.arange(len(split.items)))
  assert len(set(users.vocabulary.items)) == len(users.vocabulary.items)


def check_table(folder, path, whole, *, label='age'):
  path.write_bytes(whole)
  return check_right_or_refused(
    folder,
    [path],
    'user_tables',
    config=lambda: user_tables_config(events=str(path), label_column=label),
  )


def first_of_each_name(pairs):
  return dict(reversed(pairs))


def json_line(line):
  try:
    return json.loads(line, object_pairs_hook=first_of_each_name)
  except ValueError:
    # DuckDB accepts a comma after the last value.
    line = re.sub(r',(\s*[}\]])', r'\1', line)
    return json.loads(line, object_pairs_hook=first_of_each_name)


def assert_read_as_python_does(path):
  """Checks that ids and times are those that Python reads, without rounding."""
  columns = tables.Columns({'user': 'user_id', 'item': 'item_id'}, 'time')
  try:
    blocks = list(tables.read_columns(tables.Span(path), columns))
  except data.DataError:
    return
  found = [row for block in blocks for row in block.to_pylist()]
  with path.open(encoding='utf-8-sig', newline='\n') as file:
    if path.suffix == '.csv':
      header, *rows = filter(None, csv.reader(file, strict=True))
      expected = [dict(zip(header, row, strict=True)) for row in rows]
    else:
      expected = [json_line(line) for line in file if line.strip()]
  for row, cells in zip(found, expected, strict=True):
    user, item, time = (
      cell if isinstance(cell, str) else json.dumps(cell)
      for cell in (cells[name] for name in NAMES[:3])
    )
    assert (row['user'], row['item']) == (user, item)
    if row['number'] is not None:
      assert row['number'] == int(time)
    elif row['real'] is not None:
      assert row['real'] == float(time)
    else:
      moment = datetime.datetime.fromisoformat(time.strip())
      if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
      age = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
      assert age // datetime.timedelta(microseconds=1) == row['moment'] // 1000


def parquet():
  file = io.BytesIO()
  columns = zip(*ROWS, strict=True)
  named = dict(zip(NAMES, map(list, columns), strict=True))
  pyarrow.parquet.write_table(pa.table(named), file)
  return file.getvalue()


TABLES = {'csv': CSV, 'jsonl': JSONL, 'parquet': parquet()}


@pytest.mark.parametrize('suffix', TABLES)
@fuzzed
@given(draw=st.data())
def test_bytes_of_tables(folder, suffix, draw):
  path, whole = folder / f'e.{suffix}', TABLES[suffix]
  users = check_table(
    folder, path, damaged(whole, draw.draw(changes(len(whole))))
  )
  if users and suffix != 'parquet':
    assert_read_as_python_does(path)


cells = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
  lambda inner: (
    st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2)
  ),
  max_leaves=3,
)
ids = st.text(max_size=3) | cells
times = st.integers() | st.floats() | st.datetimes().map(str) | cells
rows = st.lists(
  st.fixed_dictionaries(
    {}, optional={'user_id': ids, 'item_id': ids, 'time': times, 'age': cells}
  ),
  min_size=1,
  max_size=4,
)


@fuzzed
@given(rows, st.sampled_from(['jsonl', 'csv']), st.booleans())
def test_any_cells(folder, rows, suffix, after):
  path = folder / f'e.{suffix}'
  if suffix == 'jsonl':
    text = ''.join(json.dumps(row) + '\n' for row in rows).encode(
      errors='surrogatepass'
    )
    whole = JSONL + b'\n' + text if after else text + JSONL
  else:
    file = io.StringIO()
    csv.writer(file).writerows(
      [[row.get(name) for name in NAMES] for row in rows]
    )
    text = file.getvalue().encode(errors='surrogatepass')
    header, rest = CSV.split(b'\n', 1)
    rest = rest + b'\n' + text if after else text + rest
    whole = header + b'\n' + rest
  if check_table(folder, path, whole, label=None):
    assert_read_as_python_does(path)


TYPES = st.sampled_from([
  pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.null(),
  pa.string(), pa.large_string(), pa.string_view(), pa.binary(),
  pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64()),
  pa.timestamp('s'), pa.timestamp('us', 'UTC'),
  pa.timestamp('ns', 'Asia/Tokyo'),
  pa.date32(), pa.date64(), pa.time64('us'), pa.duration('s'),
  pa.decimal128(5, 2), pa.list_(pa.int64()), pa.struct({'a': pa.int64()}),
  pa.map_(pa.string(), pa.int64()), pa.binary(3),
])  # fmt: skip


def column(kind, numbers):
  """Cells of a type, from small numbers and None."""
  if pa.types.is_null(kind):
    return pa.nulls(len(numbers))
  texts = pa.array([None if n is None else str(n) for n in numbers])
  plain = pa.array(numbers, pa.int64())
  for source in (plain, texts):
    try:
      return source.cast(kind)
    except pa.ArrowException:
      continue
  try:
    return pa.array([None] * len(numbers), kind)
  except pa.ArrowException:
    return texts


numbers = st.lists(
  st.none() | st.integers(-9, 99) | st.integers(2**40, 2**62),
  min_size=0,
  max_size=30,
)


@fuzzed
@given(
  st.lists(st.tuples(TYPES, numbers), min_size=4, max_size=4),
  st.lists(st.sampled_from(NAMES), max_size=2),
)
def test_any_columns_of_parquet(folder, columns, more):
  length = min(len(values) for _, values in columns)
  arrays = [column(kind, values[:length]) for kind, values in columns]
  names = [*NAMES, *more]
  arrays += arrays[: len(more)]
  path = folder / 'e.parquet'
  try:
    pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, names), path)
  except pa.ArrowException:
    return  # Not a type that Parquet has.
  for label in ('age', None):
    check_table(folder, path, path.read_bytes(), label=label)


@fuzzed
@given(
  changes(len(TTL)),
  changes(len(CLICK)),
  st.sampled_from(['pretrain', 'click']),
)
def test_ttl(folder, of_users, of_lines, task):
  manual = folder / 'manual'
  manual.mkdir(exist_ok=True)
  paths = [
    manual / 'original_desen_pretrain.csv',
    manual / 'original_desen_finetune_click_nouserID.csv',
  ]
  # With both files damaged, the second would rarely be read.
  paths[0].write_bytes(damaged(TTL, of_users) if task == 'pretrain' else TTL)
  paths[1].write_bytes(damaged(CLICK, of_lines))
  check_right_or_refused(
    folder, [*paths, manual], f'ttl/{task}', manual_dir=str(manual)
  )


def zipped(files):
  with tempfile.TemporaryDirectory() as folder:
    return write_zip(pathlib.Path(folder, 'a.zip'), files).read_bytes()


FILES = grouplens_files('1m')
ZIP = zipped(FILES)
WHEEL = zipped(wheel_files('100k'))
RATINGS = FILES['ml-1m/ratings.dat']
TA_FENG = ta_feng_csv()
JOURNEYS = journey_files()


@fuzzed
@given(changes(len(ZIP)))
def test_a_zip(folder, these):
  manual = folder / 'movies'
  manual.mkdir(exist_ok=True)
  path = manual / 'ml-1m.zip'
  path.write_bytes(damaged(ZIP, these))
  check_right_or_refused(
    folder, [path], 'movielens_users/1m_age', manual_dir=str(manual)
  )


@fuzzed
@given(changes(len(WHEEL)))
def test_a_wheel(folder, these):
  path = folder / 'a.whl'
  path.write_bytes(damaged(WHEEL, these))
  log = message = None
  try:
    log = read(path, EDITIONS['100k'])
  except data.DataError as error:
    message = str(error)
  if log is None:
    assert str(path) in message
  else:
    ratings = log.behaviours.to_pydict()
    assert set(ratings['rating']) <= {1, 2, 3, 4, 5}
    assert set() < set(ratings['user']) <= set(log.users['user'].to_pylist())


@fuzzed
@given(changes(len(TA_FENG)))
def test_a_file_of_ta_feng(folder, these):
  manual = folder / 'purchases'
  manual.mkdir(exist_ok=True)
  path = manual / ta_feng.TABLE
  path.write_bytes(damaged(TA_FENG, these))
  check_right_or_refused(folder, [path], 'ta_feng/age', manual_dir=str(manual))


@fuzzed
@given(st.sampled_from(sorted(JOURNEYS)), st.data())
def test_parquet_files_in_a_wheel(folder, member, draw):
  these = draw.draw(changes(len(JOURNEYS[member])))
  path = write_zip(
    folder / 'journeys.whl',
    JOURNEYS | {member: damaged(JOURNEYS[member], these)},
  )
  journeys = message = None
  try:
    journeys = complete_journey.read(path)
  except data.DataError as error:
    message = str(error)
  if journeys is None:
    assert str(path) in message
    assert len(message) < 1500
  else:
    assert not any(column.null_count for column in journeys.bought.columns)
    assert not any(column.null_count for column in journeys.pairs.columns)


@fuzzed
@given(st.sampled_from(sorted(FILES)), st.data())
def test_files_in_a_zip(folder, member, draw):
  these = draw.draw(changes(len(FILES[member])))
  manual = folder / 'movies'
  manual.mkdir(exist_ok=True)
  path = write_zip(
    manual / 'ml-1m.zip', FILES | {member: damaged(FILES[member], these)}
  )
  check_right_or_refused(
    folder, [path], 'movielens_users/1m_click', manual_dir=str(manual)
  )
