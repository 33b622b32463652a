"""Writes tables for the tests of user_tables, and reads the data sets."""

import json

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax import data
from adaptssr_jax.data.readers.lines import COMPRESSED, Span
from adaptssr_jax.data.readers.tables import Columns, read_columns
from adaptssr_jax.data.user_tables import user_tables_config

COLUMNS = ('user_id', 'item_id', 'time')
_CONNECT = duckdb.connect
# Anna's items in order of time are shoe, hat, été and a,"b"; hat and été tie.
EVENTS = [
  ('anna', 'hat', 5, 'old'),
  ('日本', 'shoe', 9, ''),
  ('anna', 'été', 5, 'old'),
  ('7', 'shoe', -2, 'new'),
  ('anna', 'shoe', 1, 'old'),
  ('anna', 'a,"b"', 6, 'old'),
  ('7', '007', 8, 'new'),
]
# Each split of each task gets users.
EVENTS += [(f'u{row}', 'hat', row, 'new') for row in range(17)]


def write(path, rows, names=(*COLUMNS, 'age')):
  """Writes rows in the format, and the compression, of the path's suffixes."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix in COMPRESSED:
    return compress(write(path.with_suffix(''), rows, names), path.suffix)
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


def compress(path, suffix):
  """Replaces a file by a compressed one."""
  packed = path.with_name(path.name + suffix)
  with pa.output_stream(packed, compression='detect') as file:
    file.write(path.read_bytes())
  path.unlink()
  return packed


def load(tmp_path, events, **settings):
  config = user_tables_config(events=str(events), **settings)
  builder = tfds.builder(
    'user_tables', config=config, data_dir=tmp_path / 'prepared'
  )
  return data.load(builder)


def rows_of(path, *, start=0, end=None, line=1, **settings):
  """The rows of a span of a file: line, user, item and time."""
  texts = {'user_id': 'user_id', 'item_id': 'item_id'}
  columns = Columns(texts, settings.pop('time_column', 'time'), **settings)
  span = Span(path, start, end, line)
  blocks = [block.to_pylist() for block in read_columns(span, columns)]
  return [tuple(row.values()) for block in blocks for row in block]


def set_threads(monkeypatch, number):
  """Sets the number of threads of every new connection to DuckDB."""

  def connect(*args, config=(), **options):
    config = dict(config) | {'threads': number}
    return _CONNECT(*args, config=config, **options)

  monkeypatch.setattr(duckdb, 'connect', connect)


def error_of(tmp_path, events, **settings):
  """The message of the error; checks that nothing prepared is left."""
  with pytest.raises(data.DataError) as error:
    load(tmp_path, events, **settings)
  assert not list((tmp_path / 'prepared').rglob('*1.0.0*'))
  return str(error.value)


TWELVE = [f'u{row},i,{row},x' for row in range(12)]


def csv_file(tmp_path, changes, name='e.csv'):
  """Writes a table with some lines replaced; line 1 is the header."""
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
