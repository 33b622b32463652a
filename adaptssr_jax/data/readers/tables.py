"""Files of behaviours or labels as columns that have been checked.

DuckDB cuts the lines of a block into cells and checks these. Where a line of
CSV is not plain, that and what follows in the file are read row by row.
"""

from __future__ import annotations

import io
import itertools
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.readers import table_sql
from adaptssr_jax.data.readers.lines import (
  PARQUET,
  Block,
  Span,
  decoded,
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

# Rows are counted on in the next file from here: no file has as many.
FILE = 1 << 40
_CSV = '.csv'
_FORMATS = (_CSV, '.jsonl', '.ndjson', '.json', *PARQUET)
_AS_IT_IS = 'select *, null::varchar as wrong from block'
# Rows read one by one that become a block, and that one thread of DuckDB takes.
_ROWS = 65_536


class Columns(NamedTuple):
  """Which columns of a file are read, and what becomes of them.

  Args:
    texts: those of ids and labels, by their names in the result.
    time: that of times, if any.
    optional: which of the names in the result may be null.
    time_format: of `strptime`, for times that are neither numbers nor ISO 8601.
    where: a condition in SQL; rows for which it is not true are left out.
  """

  texts: Mapping[str, str]
  time: str | None = None
  optional: Collection[str] = ()
  time_format: str = ''
  where: str = ''

  @property
  def names(self) -> list[str]:
    """All of them, each once: texts, time, and those of the condition."""
    time = [self.time] if self.time else []
    tested = table_sql.columns_of(self.where)
    return list(dict.fromkeys([*self.texts.values(), *time, *tested]))


class Tables(NamedTuple):
  """Files, whose rows count one after the other, and what is read of each.

  The columns of behaviours are called user_id, item_id and, if it is there,
  label; those of labels user_id and label.
  """

  paths: Sequence[pathlib.Path]
  columns: Columns

  def place(self, row: int) -> str:
    """The file and the line of a row of the database, for messages."""
    return _place(self.paths[row // FILE], row % FILE)

  def __str__(self) -> str:
    return ', '.join(map(str, self.paths))


def _place(path: pathlib.Path, line: int) -> str:
  return f'{path}, {"row" if is_parquet(path) else "line"} {line}'


def check_path(path: pathlib.Path) -> None:
  """Raises `DataError` for what is no file, or not in a format that is read."""
  if path.suffix.lower() not in _FORMATS:
    raise DataError(
      f'{path}: unknown format; its name must end in {", ".join(_FORMATS)}'
    )
  # A device may have no end.
  if not os.path.isfile(path):
    raise DataError(f'{path} cannot be read: there is no file of this name')


def read_columns(
  connection: duckdb.DuckDBPyConnection, span: Span, columns: Columns
) -> Iterator[pa.Table]:
  """Reads a file, or a span of it, in the format that its suffix says.

  Yields:
    Tables with the columns
      line: the number of the line, in Parquet of the row, from 1.
      NAME: text, for each name in `columns.texts`.
      number, real, moment: the time in one of them, as int64, as float64, or in
        nanoseconds since 1970; the others are null.

  Raises:
    DataError: the file is not there, not in that format, has no rows or lacks a
      column, or a row of it is wrong; the message has its line.
  """
  check_path(span.path)
  read = _read_parquet if is_parquet(span.path) else _read_json
  if span.path.suffix.lower() == _CSV:
    read = _read_csv
  try:
    for table in read(connection, span, columns):
      row = pc.index(pc.is_valid(table['wrong']), True).as_py()
      if row >= 0:
        line, wrong = table['line'][row], table['wrong'][row]
        raise DataError(f'{_place(span.path, line.as_py())}: {wrong}')
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
      not_read = ('boolean',) if name == columns.time else ('real', 'moment')
      if kinds[name] in ('', *not_read):
        raise DataError(
          f'{span.path}: column {name!r} holds {types[name]}; ids and labels '
          'must be text, integers or booleans, times numbers, timestamps or '
          'text'
        )
    cells = dict(zip(names, block.column_names[1:], strict=True))
    kind = kinds.get(columns.time, 'text')
    yield _select(connection, columns, block, _AS_IT_IS, cells, kind)
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
    yield _select(connection, columns, lines, query, _places(names, names))


def _read_csv(
  connection: duckdb.DuckDBPyConnection, span: Span, columns: Columns
) -> Iterator[pa.Table]:
  present, header = csv_header(span.path)
  check_columns(span.path, present, columns.names)
  places = _places(columns.names, present)
  # Only the span that begins with the file has its header.
  rows = f'(from block where line > {0 if span.start else header})'
  query = table_sql.csv_cells(rows, len(present))
  blocks = text_blocks(span)
  for block in blocks:
    lines = _lines(span.path, block)
    table = _select(connection, columns, lines, query, places)
    if not pc.any(pc.equal(table['wrong'], table_sql.NOT_PLAIN)).as_py():
      yield table
      continue
    # This block and what follows in the file, row by row.
    rest = itertools.chain([block], blocks)
    texts = itertools.chain.from_iterable(io.BytesIO(b.text) for b in rest)
    found = csv_rows(span.path, texts, line=block.line, width=len(present))
    query = _AS_IT_IS.replace('block', rows)
    while chunk := list(itertools.islice(found, _ROWS)):
      numbers, lists = map(list, zip(*chunk, strict=True))
      lists = pa.array(lists, pa.list_(TEXT))
      chunk = pa.table({'line': numbers, 'cells': lists})
      yield _select(connection, columns, chunk, query, places)


def _places(names: Sequence[str], listed: Sequence[str]) -> dict[str, str]:
  """SQL of the cells of these columns, in lists of those that are there."""
  return {
    name: f"nullif(cells[{1 + listed.index(name)}], '')" for name in names
  }


def _lines(path: pathlib.Path, block: Block) -> pa.Table:
  """The columns `line` and `text`; `DataError` for a line that is not UTF-8."""
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
  """The result of `read_columns` for a block, and what is `wrong` with a row.

  Args:
    query: SQL of a `select` from `block`, with the columns `line` and `wrong`.
    cells: SQL of the cells in that, by the name of their column.
    kind: what those of the time hold.
  """
  # A condition names columns of the file; all others have names of their own.
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
    columns.texts, columns.time, columns.optional, columns.time_format
  )
  query = f'select {found}, {wrong} as wrong from ({query})'
  connection.register('block', block)
  try:
    return connection.sql(query).to_arrow_table()
  except (duckdb.ProgrammingError, duckdb.DataError) as error:
    if columns.where:
      raise table_sql.wrong_condition(columns.where, error) from None
    raise
  finally:
    connection.unregister('block')
