"""Files of behaviours or labels as columns that have been checked.

DuckDB cuts the lines of a block into cells and checks these. Where a line of
CSV is not plain, that and what follows in the file are read row by row.
"""

from __future__ import annotations

import collections
import io
import itertools
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.readers.table_files import (
  TEXT,
  check_columns,
  csv_header,
  csv_rows,
  decoded,
  json_header,
  kind_of,
  parquet_blocks,
  text_blocks,
)
from adaptssr_jax.data.readers.table_sql import (
  NOT_PLAIN,
  columns_of,
  csv_cells,
  identifier,
  json_cells,
  quoted,
  with_times,
  wrong_condition,
)
from adaptssr_jax.data.rows import DataError

_CSV = ('.csv',)
_PARQUET = ('.parquet', '.pq')
_FORMATS = (*_CSV, '.jsonl', '.ndjson', '.json', *_PARQUET)
_AS_IT_IS = 'select *, null::varchar as wrong from block'
# Rows read one by one that become a block.
_ROWS = 65_536
_NO_TIME = (
  'neither a finite number, of at most 63 bits if it is an integer, nor an '
  'ISO-8601 timestamp in 1678 to 2261'
)


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
    tested = columns_of(self.where)
    return list(dict.fromkeys([*self.texts.values(), *time, *tested]))


class Part(NamedTuple):
  """A file, or a part of it.

  Args:
    path: of the file: .csv, .parquet, or .jsonl.
    columns: which of its columns are read.
    start: where the part begins: a byte of text, from which the first line that
      begins is read, or a row group of Parquet.
    end: where the next part begins; None for the end of the file.
    line: the number of the first line of a part of a text file.
  """

  path: pathlib.Path
  columns: Columns
  start: int = 0
  end: int | None = None
  line: int = 1


def check_path(path: pathlib.Path) -> None:
  """Raises `DataError` for what is no file, or not in a format that is read."""
  if path.suffix.lower() not in _FORMATS:
    raise DataError(
      f'{path}: unknown format; its name must end in {", ".join(_FORMATS)}'
    )
  # A device may have no end.
  if not os.path.isfile(path):
    raise DataError(f'{path} cannot be read: there is no file of this name')


def is_parquet(path: pathlib.Path) -> bool:
  """Whether a file is in that format."""
  return path.suffix.lower() in _PARQUET


def place(path: pathlib.Path, line: int) -> str:
  """The file and the line, in Parquet the row, for messages."""
  return f'{path}, {"row" if is_parquet(path) else "line"} {line}'


def read_columns(
  connection: duckdb.DuckDBPyConnection, part: Part
) -> Iterator[pa.Table]:
  """Reads a file, or a part of it, in the format that its suffix says.

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
  check_path(part.path)
  read = _read_parquet if is_parquet(part.path) else _read_text
  try:
    for table in read(connection, part):
      row = pc.index(pc.is_valid(table['wrong']), True).as_py()
      if row >= 0:
        line, wrong = table['line'][row], table['wrong'][row]
        raise DataError(f'{place(part.path, line.as_py())}: {wrong}')
      yield table.drop_columns('wrong')
  except OSError as error:
    reason = error.strerror or str(error)
    raise DataError(f'{part.path} cannot be read: {reason}') from None


def _read_parquet(
  connection: duckdb.DuckDBPyConnection, part: Part
) -> Iterator[pa.Table]:
  path, columns = part.path, part.columns
  names, is_empty = columns.names, not part.start
  for block in parquet_blocks(path, names, part.start, part.end):
    is_empty = False
    types = dict(zip(names, block.schema.types[1:], strict=True))
    kinds = {name: kind_of(type_) for name, type_ in types.items()}
    for name in [*columns.texts.values(), *filter(None, [columns.time])]:
      not_read = ('boolean',) if name == columns.time else ('real', 'moment')
      if kinds[name] in ('', *not_read):
        raise DataError(
          f'{path}: column {name!r} holds {types[name]}; ids and labels must '
          'be text, integers or booleans, times numbers, timestamps or text'
        )
    cells = dict(zip(names, block.column_names[1:], strict=True))
    kind = kinds.get(columns.time, 'text')
    yield _select(connection, columns, block, _AS_IT_IS, cells, kind)
  if is_empty:
    raise DataError(f'{path} has no rows')


def _read_text(
  connection: duckdb.DuckDBPyConnection, part: Part
) -> Iterator[pa.Table]:
  path, columns = part.path, part.columns
  names, is_csv = columns.names, path.suffix.lower() in _CSV
  if is_csv:
    present, header = csv_header(path)
  else:
    present, header = json_header(path, names), 0
  check_columns(path, present, names)
  # Only the part that begins with the file has its header.
  lines = f'(from block where line > {0 if part.start else header})'
  listed, query = present, csv_cells(lines, len(present))
  if not is_csv:
    listed = names
    query = json_cells(lines, names, list(columns.texts.values()))
  places = {name: 1 + listed.index(name) for name in names}
  cells = {name: f"nullif(cells[{at}], '')" for name, at in places.items()}
  blocks = text_blocks(path, part.start, part.end, part.line)
  for block in blocks:
    try:
      table = _select(connection, columns, block.to_arrow(), query, cells)
      is_plain = not pc.any(pc.equal(table['wrong'], NOT_PLAIN)).as_py()
    except pa.ArrowInvalid:
      is_plain = False
    if is_plain:
      yield table
      continue
    rest = itertools.chain([block], blocks)
    texts = itertools.chain.from_iterable(io.BytesIO(b.text) for b in rest)
    if not is_csv:
      # Only what is no text is not plain: one of the lines raises an error.
      collections.deque(decoded(path, texts, block.line), maxlen=0)
    rows = csv_rows(path, texts, line=block.line, width=len(present))
    while chunk := list(itertools.islice(rows, _ROWS)):
      numbers, lists = map(list, zip(*chunk, strict=True))
      lists = pa.array(lists, pa.list_(TEXT))
      judged = pa.table({'line': numbers, 'cells': lists})
      yield _select(
        connection, columns, judged, _AS_IT_IS.replace('block', lines), cells
      )


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
    connection: to DuckDB, in which the block gets that name.
    query: SQL of a `select` from it, with the columns `line` and `wrong`.
    cells: SQL of the cells in that, by the name of their column.
    kind: what those of the time hold.
  """
  # A condition names columns of the file; all others have names of their own.
  own = {name: f'__{at}' for at, name in enumerate(cells)}
  found = ['line as __line', 'wrong as __wrong']
  found += [f'{cell} as {own[name]}' for name, cell in cells.items()]
  query = f'select {", ".join(found)} from ({query})'
  if columns.where:
    names = columns_of(columns.where)
    tested = ['*', *(f'{own[name]} as {identifier(name)}' for name in names)]
    query = (
      f'from (select {", ".join(tested)} from ({query})) '
      f'where (\n{columns.where}\n) or __wrong is not null'
    )
  found = ['__line as line', '__wrong as wrong']
  for name, column in columns.texts.items():
    found.append(f"nullif({own[column]}::varchar, '') as {name}")
  found += [f'{own[columns.time]} as t'] if columns.time else []
  query = f'select {", ".join(found)} from ({query})'
  if columns.time:
    query = with_times(query, kind, columns.time_format)
  times = ['number', 'real', 'moment'] if columns.time else []
  found = ['line', *columns.texts, *times]
  query = (
    f'select {", ".join(found)}, case when wrong is not null then wrong '
    f'{_checks(columns)} end as wrong from ({query})'
  )
  connection.register('block', block)
  try:
    return connection.sql(query).to_arrow_table()
  except (duckdb.ProgrammingError, duckdb.DataError) as error:
    if columns.where:
      raise wrong_condition(columns.where, error) from None
    raise
  finally:
    connection.unregister('block')


def _checks(columns: Columns) -> str:
  """What may be wrong with the cells of a row, as branches of a `case`."""
  filled = dict(columns.texts) | ({'t': columns.time} if columns.time else {})
  checks = [
    f'when {name} is null then ' + quoted(f'column {column!r} is empty')
    for name, column in filled.items()
    if name not in columns.optional
  ]
  if columns.time:
    form = columns.time_format and f'not of the form {columns.time_format}'
    checks.append(
      'when coalesce(number, moment) is null and real is null then '
      "'time ''' || left(t::varchar, 80) || "
      + quoted(f"' is {form or _NO_TIME}")
    )
  return ' '.join(checks)
