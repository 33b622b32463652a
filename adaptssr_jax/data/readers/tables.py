"""Reads files of behaviours or labels into checked columns.

DuckDB splits blocks of lines into cells and checks them. From the first block
of CSV with a line that cannot be split this way, Python's `csv` module reads
the file row by row. DuckDB's own `read_csv` is not used: in version 2.0.1 it
reads the second cell of `a, "b"` as `b` in place of ` "b"`, accepts `"a" ` as
`a`, and drops empty cells that a row has in excess, all without an error.
"""

from __future__ import annotations

import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.readers import table_sql
from adaptssr_jax.data.readers.lines import (
  COMPRESSED,
  PARQUET,
  Block,
  Span,
  decoded,
  format_of,
  is_compressed,
  is_parquet,
  text_blocks,
)
from adaptssr_jax.data.readers.table_files import (
  TEXT,
  check_columns,
  csv_header,
  csv_rows,
  json_header,
  kind_of,
  parquet_blocks,
)
from adaptssr_jax.data.rows import DataError

# Added to the line numbers of each further file; no file has as many lines.
FILE = 1 << 40
_CSV = '.csv'
_TEXTS = (_CSV, '.jsonl', '.ndjson', '.json')
_SELECT_ALL = 'select *, null::varchar as wrong from block'
# Rows of a block that are read one by one, and that a DuckDB thread processes.
_ROWS = 65_536


class Columns(NamedTuple):
  """The columns to read from a file, and how to read them.

  Args:
    texts: {name in the result: column of the file}, for ids and labels. Only
      the cells of `label` may be empty.
    time: the column of times; None if there is none.
    time_format: a `strptime` format, for times that are neither numbers nor
      ISO-8601 timestamps.
    where: a condition in SQL; rows for which it is not true are left out.
  """

  texts: Mapping[str, str]
  time: str | None = None
  time_format: str = ''
  where: str = ''

  @property
  def names(self) -> list[str]:
    """The distinct columns of texts, of times, and of the condition."""
    time = [self.time] if self.time else []
    in_condition = table_sql.columns_of(self.where)
    return list(dict.fromkeys([*self.texts.values(), *time, *in_condition]))


class Tables(NamedTuple):
  """Files that are read one after the other, and the columns to read.

  Behaviours have the columns user_id, item_id and, if they include labels,
  label. Labels have the columns user_id and label.
  """

  paths: Sequence[pathlib.Path]
  columns: Columns

  def location(self, row: int) -> str:
    """Names the file and line of a row of the database, for messages."""
    return _location(self.paths[row // FILE], row % FILE)

  def __str__(self) -> str:
    return ', '.join(map(str, self.paths))


def _location(path: pathlib.Path, line: int) -> str:
  return f'{path}, {"row" if is_parquet(path) else "line"} {line}'


def check_path(path: pathlib.Path) -> None:
  """Raises `DataError` unless the path is a file in a supported format."""
  if path.is_dir():
    raise DataError(
      f"{path} is a folder; give its files, such as '{path}/*.parquet'"
    )
  formats = _TEXTS if is_compressed(path) else (*_TEXTS, *PARQUET)
  if format_of(path) not in formats:
    raise DataError(
      f'{path}: unknown format; its name must end in {", ".join(formats)}'
      f' or, for compressed text, in one of these and {", ".join(COMPRESSED)}'
    )
  # Reading a device might never end.
  if not os.path.isfile(path):
    raise DataError(f'{path} cannot be read: there is no such file')


def read_columns(span: Span, columns: Columns) -> Iterator[pa.Table]:
  """Reads a file, or a span of it, in the format given by its suffix.

  Yields:
    Tables with the columns
      line: the line number from 1; in Parquet, the row number from 1.
      NAME: text, for each name in `columns.texts`.
      number, real, moment: the time, in one of the three: as an int64, as a
        float64, or in nanoseconds since 1970. The other two are null.

  Raises:
    DataError: the file does not exist, is not in that format, has no rows or
      lacks a column, or a row is invalid; the message names its line.
  """
  read = _read_parquet if is_parquet(span.path) else _read_json
  if format_of(span.path) == _CSV:
    read = _read_csv
  try:
    # A database of its own, because a condition may name any table.
    with duckdb.connect() as connection:
      for table in read(connection, span, columns):
        row = pc.index(pc.is_valid(table['wrong']), True).as_py()
        if row >= 0:
          line, wrong = table['line'][row], table['wrong'][row]
          raise DataError(f'{_location(span.path, line.as_py())}: {wrong}')
        yield table.drop_columns('wrong')
  except OSError as error:
    reason = error.strerror or str(error)
    raise DataError(f'{span.path} cannot be read: {reason}') from None


def _read_parquet(
  connection: duckdb.DuckDBPyConnection, span: Span, columns: Columns
) -> Iterator[pa.Table]:
  names, is_empty = columns.names, not span.start
  for block in parquet_blocks(span, names):
    is_empty = False
    types = dict(zip(names, block.schema.types[1:], strict=True))
    kinds = {name: kind_of(kind) for name, kind in types.items()}
    for name in [*columns.texts.values(), *filter(None, [columns.time])]:
      is_time = name == columns.time
      refused = ('boolean', 'uuid') if is_time else ('real', 'moment')
      if kinds[name] in ('', *refused):
        raise DataError(
          f'{span.path}: column {name!r} holds {types[name]}; ids and labels '
          'must be text, integers, booleans or UUIDs, times numbers, '
          'timestamps or text'
        )
    cells = dict(zip(names, block.column_names[1:], strict=True))
    kind = kinds.get(columns.time, 'text')
    yield _select(connection, columns, block, _SELECT_ALL, cells, kind)
  if is_empty:
    raise DataError(f'{span.path} has no rows')


def _read_json(
  connection: duckdb.DuckDBPyConnection, span: Span, columns: Columns
) -> Iterator[pa.Table]:
  names = columns.names
  present = json_header(span.path, names)
  check_columns(span.path, present, names)
  ids = list(columns.texts.values())
  query = table_sql.json_cells('block', names, ids)
  for block in text_blocks(span):
    lines = _lines(span.path, block)
    yield _select(connection, columns, lines, query, _cells(names, names))


def _read_csv(
  connection: duckdb.DuckDBPyConnection, span: Span, columns: Columns
) -> Iterator[pa.Table]:
  present, header = csv_header(span.path)
  check_columns(span.path, present, columns.names)
  cells = _cells(columns.names, present)
  # Only the span at the start of the file has the header.
  rows = f'(from block where line > {0 if span.start else header})'
  query = table_sql.csv_cells(rows, len(present))
  blocks = text_blocks(span)
  for block in blocks:
    lines = _lines(span.path, block)
    table = _select(connection, columns, lines, query, cells)
    if not pc.any(pc.equal(table['wrong'], table_sql.NOT_PLAIN)).as_py():
      yield table
      continue
    # Read this block and the rest of the file row by row.
    rest = itertools.chain([block], blocks)
    texts = itertools.chain.from_iterable(io.BytesIO(b.text) for b in rest)
    found = csv_rows(span.path, texts, line=block.line, width=len(present))
    query = _SELECT_ALL.replace('block', rows)
    while chunk := list(itertools.islice(found, _ROWS)):
      numbers, lists = map(list, zip(*chunk, strict=True))
      lists = pa.array(lists, pa.list_(TEXT))
      chunk = pa.table({'line': numbers, 'cells': lists})
      yield _select(connection, columns, chunk, query, cells)


def _cells(names: Sequence[str], listed: Sequence[str]) -> dict[str, str]:
  """SQL for the cells of columns, given the columns that `cells` lists."""
  return {
    name: f"nullif(cells[{1 + listed.index(name)}], '')" for name in names
  }


def _lines(path: pathlib.Path, block: Block) -> pa.Table:
  """A table of `line` and `text`; `DataError` if a line is not UTF-8."""
  try:
    texts = block.to_arrow().cast(TEXT)
  except pa.ArrowInvalid:
    for _ in decoded(path, io.BytesIO(block.text), block.line):
      pass
    raise
  numbers = np.arange(block.line, block.line + len(texts))
  table = pa.table({'line': numbers, 'text': texts})
  return pa.Table.from_batches(table.to_batches(_ROWS))


def _select(
  connection: duckdb.DuckDBPyConnection,
  columns: Columns,
  block: pa.Table,
  query: str,
  cells: Mapping[str, str],
  kind: str = 'text',
) -> pa.Table:
  """The table of `read_columns` for a block, with the errors in `wrong`.

  Args:
    query: a `select` from `block`, with the columns `line` and `wrong`.
    cells: {column of the file: SQL of its cells in `query`}.
    kind: the kind of the time column, as in `table_sql.with_times`.
  """
  # A condition may name any column of the file, so no other name may be used.
  own = {name: f'__{at}' for at, name in enumerate(cells)}
  found = ', '.join(f'{cell} as {own[name]}' for name, cell in cells.items())
  query = f'select line as __line, wrong as __wrong, {found} from ({query})'
  if columns.where:
    query = table_sql.with_condition(query, columns.where, own)
  found = [
    f"nullif({own[column]}::varchar, '') as {name}"
    for name, column in columns.texts.items()
  ]
  times = []
  if columns.time:
    found.append(f'{own[columns.time]} as t')
    times = ['number', 'real', 'moment']
  found = ', '.join(['__line as line', '__wrong as wrong', *found])
  query = f'select {found} from ({query})'
  if columns.time:
    query = table_sql.with_times(query, kind, columns.time_format)
  found = ', '.join(['line', *columns.texts, *times])
  wrong = table_sql.wrong_cells(
    columns.texts, columns.time, columns.time_format
  )
  query = f'select {found}, {wrong} as wrong from ({query})'
  refused = duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError
  try:
    connection.register('block', block)
    return connection.sql(query).to_arrow_table()
  except refused as error:
    if columns.where:
      raise table_sql.wrong_condition(columns.where, error) from None
    raise
  finally:
    connection.unregister('block')
