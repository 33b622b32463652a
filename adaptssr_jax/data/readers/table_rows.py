"""CSV and JSON-lines files, row by row: slowly, but with the line of each."""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from adaptssr_jax.data.rows import DataError, shown

CSV = ('.csv',)
_LONGEST = 2**31 - 1
# Bytes looked at at once.
_BLOCK = 1 << 24
# Of a file that may be anything.
_MOST_NAMES = 20
JSON = ('.jsonl', '.ndjson', '.json')
Row = tuple[int, list[str | None]]


class Columns(NamedTuple):
  """Which columns are read.

  Args:
    texts: those of ids and labels: text, integers or booleans.
    time: that of times, if any, which may hold floats, too.
  """

  texts: tuple[str, ...]
  time: str | None = None

  @property
  def names(self) -> list[str]:
    """All of them, the time last."""
    return [*self.texts, *([self.time] if self.time else [])]


def read_rows(path: pathlib.Path, columns: Columns) -> Iterator[Row]:
  """Reads a file row by row.

  Args:
    path: of the file, CSV or JSON lines.
    columns: which of its columns.

  Yields:
    The line each row begins on, and its cells as text or None.

  Raises:
    DataError: a line is wrong; the message has the file, the line and why.
  """
  if path.suffix.lower() in CSV:
    return _csv_rows(path, columns)
  return _json_rows(path, columns)


def check_columns(
  path: pathlib.Path, present: Collection[str], columns: Columns
) -> None:
  """Raises `DataError` where a column is missing, or there twice."""
  for name in columns.names:
    count = list(present).count(name)
    some = list(present)[:_MOST_NAMES]
    if count != 1:
      raise DataError(
        f'{path}: {"two columns" if count else "no column"} {name!r}; its '
        f'columns are {", ".join(map(shown, some)) or "none: it is empty"}'
      )


def csv_header(path: pathlib.Path) -> list[str]:
  """The names of the columns, none for an empty file."""
  try:
    with _long_cells():
      header = next(csv.reader(_lines(path), strict=True), None)
  except csv.Error as error:
    raise _malformed(path, 1, error) from None
  if header == []:
    raise DataError(
      f'{path}, line 1 is blank: put the names of the columns there'
    )
  return header or []


def json_header(path: pathlib.Path, columns: Columns) -> dict[str, Any]:
  """The first object, and what it lacks of these columns from later ones."""
  header = {}
  for _, record in _json_records(path):
    # Some writers leave out what is null.
    lacking = [name for name in columns.names if name not in header]
    found = {name: record[name] for name in lacking if name in record}
    header = header | found if header else record
    if all(name in header for name in columns.names):
      break
  return header


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
  """Reads cells of any length, as pyarrow does; the limit is the process's."""
  before = csv.field_size_limit(_LONGEST)
  try:
    yield
  finally:
    csv.field_size_limit(before)


def _csv_rows(path: pathlib.Path, columns: Columns) -> Iterator[Row]:
  with _long_cells():
    yield from _csv_rows_of_any_length(path, columns)


def _csv_rows_of_any_length(
  path: pathlib.Path, columns: Columns
) -> Iterator[Row]:
  reader = csv.reader(_lines(path), strict=True)
  line = 1
  try:
    header = next(reader)
    places = [header.index(name) for name in columns.names]
    line = reader.line_num + 1
    for cells in reader:
      # pyarrow skips blank lines, too.
      if cells and len(cells) != len(header):
        raise DataError(
          f'{path}, line {line}: {len(cells)} cells, but the header has '
          f'{len(header)}'
        )
      if cells:
        yield line, [cells[place] for place in places]
      line = reader.line_num + 1
  except csv.Error as error:
    raise _malformed(path, line, error) from None


def _malformed(path: pathlib.Path, line: int, error: csv.Error) -> DataError:
  reason = str(error)
  if reason.startswith('new-line character'):
    # What Python advises is for programmers.
    reason = (
      'a carriage return without a line feed; end lines by line feeds, and put '
      'a cell with a carriage return between quotation marks'
    )
  return DataError(f'{path}, line {line}: malformed CSV: {reason}')


def _json_rows(path: pathlib.Path, columns: Columns) -> Iterator[Row]:
  for line, record in _json_records(path):
    cells = []
    for name in columns.names:
      try:
        cells.append(_text(record.get(name), name in columns.texts))
      except ValueError as error:
        raise DataError(
          f'{path}, line {line}: column {name!r} {error}'
        ) from None
    yield line, cells


def _json_records(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  for line, text in enumerate(_lines(path), 1):
    if not text.strip():
      continue
    try:
      record = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise DataError(f'{path}, line {line}: malformed JSON: {error}') from None
    if not isinstance(record, dict):
      raise DataError(f'{path}, line {line}: not a JSON object')
    yield line, record


def _text(cell: Any, is_text: bool) -> str | None:
  if cell is None:
    return None
  if isinstance(cell, bool):
    return 'true' if cell else 'false'
  if not isinstance(cell, (str, int) if is_text else (str, int, float)):
    kinds = 'text or an integer' if is_text else 'a number or a timestamp'
    raise ValueError(f'holds a {type(cell).__name__}, which is not {kinds}')
  if isinstance(cell, str) and not cell.isascii():
    try:
      cell.encode()
    except UnicodeEncodeError:
      raise ValueError(
        'holds half a surrogate pair, which is no text'
      ) from None
  return str(cell)


def _lines(path: pathlib.Path) -> Iterator[str]:
  with path.open('rb') as file:
    for line, text in enumerate(file, 1):
      try:
        # Spreadsheets begin a file with a byte-order mark.
        yield text.decode('utf-8-sig' if line == 1 else 'utf-8')
      except UnicodeDecodeError as error:
        raise DataError(
          f'{path}, line {line}: not UTF-8: {error.reason}'
        ) from None


def count_lines(path: pathlib.Path, *, blank: bool = True) -> int:
  """The lines of a file, or those that are not blank."""
  with path.open('rb') as file:
    return sum(1 for line in file if blank or line.strip())


def is_plain_csv(path: pathlib.Path) -> bool:
  """Whether a fast reader finds the same rows as one that knows the lines.

  Quotation marks stand at the ends of cells, or are doubled, and each carriage
  return has its line feed.
  """
  text = np.memmap(path, np.uint8, mode='r')
  ends = np.frombuffer(b',\r\n"', np.uint8)
  count = 0
  for start in range(0, len(text), _BLOCK):
    block = text[start : start + _BLOCK]
    returns = start + 1 + np.flatnonzero(block == ord('\r'))
    if len(returns) and returns[-1] == len(text):
      return False
    at = start + np.flatnonzero(block == ord('"'))
    # One in two opens: a doubled mark closes, and opens again.
    opens, closes = at[count % 2 :: 2], at[1 - count % 2 :: 2]
    before = text[opens[opens > 0] - 1]
    after = text[closes[closes < len(text) - 1] + 1]
    if not (
      (text[returns] == ord('\n')).all()
      and np.isin(before, ends).all()
      and np.isin(after, ends).all()
    ):
      return False
    count += len(at)
  return True
