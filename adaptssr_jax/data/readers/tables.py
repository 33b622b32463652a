"""Columns of CSV, Parquet and JSON-lines files.

pyarrow reads a file in bulk. Where it gives up, or may have joined lines, the
file is read again row by row, which either finds the rows after all or says
which line is wrong, and why.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from adaptssr_jax.data.readers.table_rows import (
  CSV,
  JSON,
  Columns,
  check_columns,
  count_lines,
  csv_header,
  is_plain_csv,
  json_header,
  read_rows,
)
from adaptssr_jax.data.readers.table_times import EXACT
from adaptssr_jax.data.rows import DataError, shown

# Not `string`, whose offsets end at 2 GiB of text.
TEXT = pa.large_string()
_PARQUET = ('.parquet', '.pq')
_JSON_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
# Rows read one by one that become a chunk of a column.
_CHUNK = 65_536


class Table(NamedTuple):
  """Some columns of a file.

  Args:
    path: of the file.
    columns: which they are.
    cells: by name: ids and labels as text, times as they are stored; with
      nulls.
    rows: which rows of the file they are, from 0; None for all.
  """

  path: pathlib.Path
  columns: Columns
  cells: dict[str, pa.ChunkedArray]
  rows: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.cells[self.columns.names[0]])

  def where(self, row: int) -> str:
    """The file and the line, in Parquet the row, of a row counted from 0."""
    row = row if self.rows is None else int(self.rows[row])
    if self.path.suffix.lower() in _PARQUET:
      return f'{self.path}, row {row + 1}'
    rows = read_rows(self.path, self.columns)
    line, _ = next(itertools.islice(rows, row, None))
    return f'{self.path}, line {line}'


def read_table(path: pathlib.Path, columns: Columns) -> Table:
  """Reads some columns of a file, in the format that its suffix says.

  Args:
    path: of the file: .csv, .parquet, or .jsonl.
    columns: which of its columns.

  Returns:
    The table; it has rows, but cells may be empty or null.

  Raises:
    DataError: the file is not there, not in that format, has no rows or lacks a
      column; the message has the line, if it is one line that is wrong.
  """
  check_path(path)
  try:
    if path.suffix.lower() in _PARQUET:
      cells = _read_parquet(path, columns)
    else:
      cells = _read_lines(path, columns)
  except OSError as error:
    reason = error.strerror or _first_line(error)
    raise DataError(f'{path} cannot be read: {reason}') from None
  table = Table(path, columns, cells)
  if not len(table):
    raise DataError(f'{path} has no rows')
  return table


def check_path(path: pathlib.Path) -> None:
  """Raises `DataError` for what is no file, or not in a format that is read."""
  if path.suffix.lower() not in CSV + JSON + _PARQUET:
    known = ', '.join(CSV + JSON + _PARQUET)
    raise DataError(f'{path}: unknown format; its name must end in {known}')
  # A device may have no end.
  if not os.path.isfile(path):
    raise DataError(f'{path} cannot be read: there is no file of this name')


def _read_lines(
  path: pathlib.Path, columns: Columns
) -> dict[str, pa.ChunkedArray]:
  is_csv = path.suffix.lower() in CSV
  header = csv_header(path) if is_csv else json_header(path, columns)
  check_columns(path, header, columns)
  try:
    if is_csv:
      return _bulk_csv(path, columns)
    return _bulk_json(path, columns, header)
  except (pa.ArrowException, ValueError):
    return _collect(path, columns)


def _bulk_csv(
  path: pathlib.Path, columns: Columns
) -> dict[str, pa.ChunkedArray]:
  if not is_plain_csv(path):
    raise ValueError('pyarrow would take it in its own way')
  names = columns.names
  table = pyarrow.csv.read_csv(
    path,
    parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
    convert_options=pyarrow.csv.ConvertOptions(
      include_columns=names,
      column_types=dict.fromkeys(names, TEXT),
      null_values=[],
      strings_can_be_null=False,
    ),
  )
  if count_lines(path) != 1 + len(table):
    raise ValueError('a quotation mark may have swallowed lines')
  return {name: table.column(name) for name in names}


def _bulk_json(
  path: pathlib.Path, columns: Columns, header: dict
) -> dict[str, pa.ChunkedArray]:
  # Told the types, pyarrow leaves text alone that looks like a timestamp.
  types = {
    name: _JSON_TYPES.get(type(header[name]), TEXT) for name in columns.names
  }
  if any(types[name] == pa.float64() for name in columns.texts):
    raise ValueError('a float is no id')
  table = pyarrow.json.read_json(
    path,
    parse_options=pyarrow.json.ParseOptions(
      explicit_schema=pa.schema(list(types.items())),
      unexpected_field_behavior='ignore',
    ),
  )
  if count_lines(path, blank=False) != len(table):
    raise ValueError('an object may go on in the next line')
  if columns.time and types[columns.time] == pa.float64():
    largest = pc.max(pc.abs(table.column(columns.time))).as_py()
    if largest is not None and largest >= EXACT:
      raise ValueError('an integer may have been rounded')
  # Unlike those of CSV, these are not checked to be UTF-8.
  table.validate(full=True)
  cells = {name: table.column(name) for name in columns.names}
  return cells | {name: cells[name].cast(TEXT) for name in columns.texts}


def _collect(
  path: pathlib.Path, columns: Columns
) -> dict[str, pa.ChunkedArray]:
  """The columns of a file that has to be read row by row."""
  rows = read_rows(path, columns)
  chunks = {name: [] for name in columns.names}
  while chunk := list(itertools.islice(rows, _CHUNK)):
    for place, name in enumerate(columns.names):
      chunks[name].append(pa.array([cells[place] for _, cells in chunk], TEXT))
  return {name: pa.chunked_array(parts, TEXT) for name, parts in chunks.items()}


def _read_parquet(
  path: pathlib.Path, columns: Columns
) -> dict[str, pa.ChunkedArray]:
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      check_columns(path, file.schema_arrow.names, columns)
      table = file.read(columns=columns.names)
  except UnicodeDecodeError as error:
    raise DataError(
      f'{path}: the name {shown(error.object)} of a column is not UTF-8; '
      'rename it'
    ) from None
  except pa.ArrowException as error:
    raise DataError(
      f'{path} is no readable Parquet file: {_first_line(error)}'
    ) from None
  return {
    name: _parquet_column(path, columns, name, table.column(name))
    for name in columns.names
  }


def _parquet_column(
  path: pathlib.Path, columns: Columns, name: str, cells: pa.ChunkedArray
) -> pa.ChunkedArray:
  kind = cells.type
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    cells = cells.cast(TEXT)
    _check_utf8(path, name, cells)
    return cells
  if name not in columns.texts:
    return cells
  if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
    raise DataError(
      f'{path}: column {name!r} holds {kind}; ids and labels must be text, '
      'integers or booleans'
    )
  return cells.cast(TEXT)


def _check_utf8(path: pathlib.Path, name: str, cells: pa.ChunkedArray) -> None:
  try:
    cells.validate(full=True)
  except pa.ArrowInvalid:
    for row, cell in enumerate(cells.cast(pa.large_binary()), 1):
      try:
        (cell.as_py() or b'').decode()
      except UnicodeDecodeError as error:
        raise DataError(
          f'{path}, row {row}: column {name!r} is not UTF-8: {error.reason}'
        ) from None


def _first_line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), type(error).__name__)
