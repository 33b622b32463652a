"""Reads the headers and rows of CSV, JSON-lines and Parquet files.

CSV is read here row by row, for files whose lines cannot simply be split at
commas: a quoted cell may hold a line break, and a malformed row is named by its
line. Parquet is read in blocks that fit in memory.
"""

from __future__ import annotations

import csv
import json
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from adaptssr_jax.data.readers.lines import (
  Span,
  decoded,
  format_of,
  open_text,
)
from adaptssr_jax.data.rows import DataError, quote_cell

# Not `string`, whose offsets end at 2 GiB of text.
TEXT = pa.large_string()
# Rows of a block of Parquet.
_ROWS = 1 << 19
_LONGEST_CELL = 2**31 - 1
# Columns that a message names at most.
_MOST_NAMES = 20
# Replaces a message by Python that is of use to programmers only.
_CARRIAGE_RETURN = (
  'a carriage return without a line feed; end lines by line feeds, and put a '
  'cell with a carriage return between quotation marks'
)
# The arguments of `user_tables_config` that rename a column.
_OPTIONS = {
  'user_id': 'user_column',
  'item_id': 'item_column',
  'time': 'time_column',
}


def check_columns(
  path: pathlib.Path, present: Collection[str], wanted: Sequence[str]
) -> None:
  """Raises `DataError` if a column is missing or exists twice."""
  for name in wanted:
    count = list(present).count(name)
    some = list(present)[:_MOST_NAMES]
    if count != 1:
      advice = ''
      if name in _OPTIONS:
        advice = f'; name yours by {_OPTIONS[name]}'
      is_csv = format_of(path) == '.csv'
      if is_csv and len(some) == 1 and re.search('[;\t|]', some[0]):
        advice = '; separate cells by commas'
      raise DataError(
        f'{path}: {"two columns" if count else "no column"} {name!r}; its '
        f'columns are {", ".join(map(quote_cell, some)) or "none: it is empty"}'
        + advice
      )


def csv_rows(
  path: pathlib.Path,
  lines: Iterable[bytes],
  *,
  line: int = 1,
  width: int | None = None,
) -> Iterator[tuple[int, list[str]]]:
  """Yields the rows of CSV that are not blank.

  Args:
    lines: lines of the file, the first of which begins a row.
    line: the number of the first of these lines.
    width: the number of cells of each row; None for that of the first row.

  Yields:
    The number of the line on which each row begins, and its cells.

  Raises:
    DataError: a row is malformed; the message names its line.
  """
  reader = csv.reader(decoded(path, lines, line), strict=True)
  # The limit applies to the whole process.
  before = csv.field_size_limit(_LONGEST_CELL)
  begin = line
  try:
    for cells in reader:
      width = width or len(cells)
      if cells and len(cells) != width:
        raise DataError(
          f'{path}, line {begin}: {len(cells)} cells, but the header has '
          f'{width}'
        )
      if cells:
        yield begin, cells
      begin = line + reader.line_num
  except csv.Error as error:
    reason = str(error)
    if reason.startswith('new-line character'):
      reason = _CARRIAGE_RETURN
    raise DataError(f'{path}, line {begin}: malformed CSV: {reason}') from None
  finally:
    csv.field_size_limit(before)


def csv_header(path: pathlib.Path) -> tuple[list[str], int]:
  """The column names, and the number of lines before the first row."""
  with open_text(path) as file:
    rows = csv_rows(path, file)
    line, names = next(rows, (1, []))
    if line > 1:
      raise DataError(
        f'{path}, line 1 is blank: put the names of the columns there'
      )
    first, _ = next(rows, (None, []))
  if names and first is None:
    raise DataError(f'{path} has no rows')
  return names, (first or 1) - 1


def json_header(path: pathlib.Path, wanted: Sequence[str]) -> list[str]:
  """The names of the first object, and the wanted ones of later objects."""
  header = {}
  with open_text(path) as file:
    for line, text in enumerate(decoded(path, file), 1):
      try:
        record = json.loads(text) if text.strip() else {}
      except (ValueError, RecursionError) as error:
        raise DataError(
          f'{path}, line {line}: malformed JSON: {error}'
        ) from None
      if not isinstance(record, dict):
        raise DataError(
          f'{path}, line {line}: not a JSON object; write one per line'
        )
      # Some writers leave out null values.
      found = [name for name in wanted if name in record]
      header |= dict.fromkeys(found if header else record)
      if all(name in header for name in wanted):
        break
  return list(header)


def parquet_blocks(span: Span, names: Sequence[str]) -> Iterator[pa.Table]:
  """Yields blocks of a Parquet file.

  Yields:
    Tables with `line`, the row number from 1, and the columns as `c0`, `c1`,
    ..., in the order of `names`.

  Raises:
    DataError: the file is damaged, lacks a column, or has text that is not
      UTF-8; the message names the row.
  """
  path = span.path
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      check_columns(path, file.schema_arrow.names, names)
      groups = range(file.num_row_groups)
      sizes = [file.metadata.row_group(group).num_rows for group in groups]
      row = 1 + sum(sizes[: span.start])
      for batch in file.iter_batches(
        _ROWS, row_groups=groups[span.start : span.end], columns=list(names)
      ):
        columns = [_without_rounding(batch.column(name)) for name in names]
        for cells in columns:
          _check_utf8(path, cells, row)
        columns = {f'c{at}': cells for at, cells in enumerate(columns)}
        yield pa.table({'line': np.arange(row, row + len(batch))} | columns)
        row += len(batch)
  except UnicodeDecodeError as error:
    raise DataError(
      f'{path}: the name {quote_cell(error.object)} of a column is not UTF-8; '
      'rename it'
    ) from None
  except pa.ArrowException as error:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise DataError(f'{path} is no readable Parquet file: {reason}') from None


def kind_of(type_: pa.DataType) -> str:
  """The kind of a column of `parquet_blocks`; '' if it is not supported."""
  kinds = {
    'text': pa.types.is_large_string,
    'uuid': lambda type_: type_ == pa.uuid(),
    'number': _is_whole,
    'real': pa.types.is_floating,
    'moment': pa.types.is_timestamp,
    'boolean': pa.types.is_boolean,
  }
  return next((kind for kind, holds in kinds.items() if holds(type_)), '')


def _is_whole(type_: pa.DataType) -> bool:
  """Whether a type holds whole numbers; databases export some as decimals."""
  is_decimal = pa.types.is_decimal128(type_) and type_.scale == 0
  return is_decimal or pa.types.is_integer(type_)


def _without_rounding(cells: pa.Array) -> pa.Array:
  """Converts cells to a type that DuckDB reads without rounding."""
  kind = cells.type
  if pa.types.is_dictionary(kind):
    return _without_rounding(cells.cast(kind.value_type))
  if kind in (pa.string(), pa.string_view()):
    return cells.cast(TEXT)
  if pa.types.is_floating(kind):
    return cells.cast(pa.float64())
  if pa.types.is_date(kind):
    return cells.cast(pa.timestamp('s'))
  # A condition on times with a zone would depend on the zone of this machine.
  is_moment = pa.types.is_timestamp(kind)
  return cells.cast(pa.timestamp(kind.unit)) if is_moment else cells


def _check_utf8(path: pathlib.Path, cells: pa.Array, row: int) -> None:
  """Raises `DataError` for text that is not UTF-8; `row` is the first row."""
  if cells.type == TEXT:
    try:
      cells.validate(full=True)
    except pa.ArrowInvalid:
      texts = (cell.as_py() or b'' for cell in cells.cast(pa.large_binary()))
      for _ in decoded(path, texts, row, 'row'):
        pass
      raise
