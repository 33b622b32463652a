"""What the files of one's own tables hold, in blocks and row by row.

Blocks that fit the memory are lines of text or columns of Parquet. CSV that is
not plain is read row by row: that finds its rows after all, such as one with a
line break between quotation marks, or says which line is malformed.
"""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from adaptssr_jax.data.readers.lines import Span, decoded
from adaptssr_jax.data.rows import DataError, shown

# Not `string`, whose offsets end at 2 GiB of text.
TEXT = pa.large_string()
# Rows of Parquet that are looked at at once.
_ROWS = 1 << 19
_LONGEST_CELL = 2**31 - 1
# A file that may be anything may have columns of any number.
_MOST_NAMES = 20
# What Python advises on carriage returns is for programmers.
_CARRIAGE_RETURN = (
  'a carriage return without a line feed; end lines by line feeds, and put a '
  'cell with a carriage return between quotation marks'
)
# What names another column than the usual one.
_OPTIONS = {
  'user_id': 'user_column',
  'item_id': 'item_column',
  'time': 'time_column',
}


def check_columns(
  path: pathlib.Path, present: Collection[str], wanted: Sequence[str]
) -> None:
  """Raises `DataError` where a column is missing, or there twice."""
  for name in wanted:
    count = list(present).count(name)
    some = list(present)[:_MOST_NAMES]
    if count != 1:
      option = _OPTIONS.get(name)
      raise DataError(
        f'{path}: {"two columns" if count else "no column"} {name!r}; its '
        f'columns are {", ".join(map(shown, some)) or "none: it is empty"}'
        + (f'; say by {option} which is yours' if option else '')
      )


def csv_rows(
  path: pathlib.Path,
  lines: Iterable[bytes],
  *,
  line: int = 1,
  width: int | None = None,
) -> Iterator[tuple[int, list[str]]]:
  """The rows of CSV that are not blank.

  Args:
    lines: the lines of the file from one where a row begins.
    line: the number of the first one.
    width: the cells that each row must have; None: as many as the first one.

  Yields:
    The number of the line each row begins on, and its cells.

  Raises:
    DataError: a row is malformed; the message has its line.
  """
  reader = csv.reader(decoded(path, lines, line), strict=True)
  # The limit is one of the whole process.
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
  """The names of the columns, and how many lines come before the first row."""
  with path.open('rb') as file:
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
  """The names in the first object, and the wanted ones of later objects."""
  header = {}
  with path.open('rb') as file:
    for line, text in enumerate(decoded(path, file), 1):
      try:
        record = json.loads(text) if text.strip() else {}
      except (ValueError, RecursionError) as error:
        raise DataError(
          f'{path}, line {line}: malformed JSON: {error}'
        ) from None
      if not isinstance(record, dict):
        raise DataError(f'{path}, line {line}: not a JSON object')
      # Some writers leave out what is null.
      found = [name for name in wanted if name in record]
      header |= dict.fromkeys(found if header else record)
      if all(name in header for name in wanted):
        break
  return list(header)


def parquet_blocks(span: Span, names: Sequence[str]) -> Iterator[pa.Table]:
  """Columns of a Parquet file as `c0`, `c1`, ..., after `line`, the row from 1.

  Raises:
    DataError: the file is damaged, lacks a column, or has text that is not
      UTF-8; the message has the row.
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
      f'{path}: the name {shown(error.object)} of a column is not UTF-8; '
      'rename it'
    ) from None
  except pa.ArrowException as error:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise DataError(f'{path} is no readable Parquet file: {reason}') from None


def kind_of(type_: pa.DataType) -> str:
  """What a column of `parquet_blocks` holds; empty if that is not read."""
  kinds = {
    'text': pa.types.is_large_string,
    'number': pa.types.is_integer,
    'real': pa.types.is_floating,
    'moment': pa.types.is_timestamp,
    'boolean': pa.types.is_boolean,
  }
  return next((kind for kind, holds in kinds.items() if holds(type_)), '')


def _without_rounding(cells: pa.Array) -> pa.Array:
  """Cells of a type that DuckDB takes as they are."""
  kind = cells.type
  if pa.types.is_dictionary(kind):
    return _without_rounding(cells.cast(kind.value_type))
  if kind in (pa.string(), pa.string_view()):
    return cells.cast(TEXT)
  if pa.types.is_floating(kind):
    return cells.cast(pa.float64())
  if pa.types.is_date(kind):
    return cells.cast(pa.timestamp('s'))
  # Of those with a zone DuckDB has microseconds alone.
  is_moment = pa.types.is_timestamp(kind)
  return cells.cast(pa.timestamp(kind.unit)) if is_moment else cells


def _check_utf8(path: pathlib.Path, cells: pa.Array, row: int) -> None:
  if cells.type == TEXT:
    try:
      cells.validate(full=True)
    except pa.ArrowInvalid:
      texts = (cell.as_py() or b'' for cell in cells.cast(pa.large_binary()))
      for _ in decoded(path, texts, row, 'row'):
        pass
      raise
