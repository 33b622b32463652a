"""The CSV files of published data sets, by PyArrow."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from adaptssr_jax.data.readers.archives import unreadable
from adaptssr_jax.data.rows import DataError


def read_csv(
  where: str,
  data: bytes,
  types: Mapping[str, pa.DataType],
  *,
  names: Sequence[str] | None = None,
  header: bool = True,
  delimiter: str = ',',
  quoted: bool = False,
  encoding: str = 'utf8',
  time_format: str = '',
) -> pa.Table:
  """Reads the columns of a file that are named in `types`.

  Args:
    where: the name of the file, for messages.
    data: all of the file.
    types: of the columns that are read.
    names: of all columns; None if the first line has them.
    header: whether the first line is none of the rows.
    delimiter: one character.
    quoted: whether a cell may stand between quotation marks.
    time_format: of columns of times, as `strptime` has it.

  Raises:
    DataError: the file is empty, lacks a column, or a row cannot be read; the
      message has the row, in which the first line of the file is row 1.
  """
  # PyArrow takes the end of the file for that of an open quotation.
  if quoted and data.count(b'"') % 2:
    raise DataError(
      f'{where} cannot be read (a quotation mark is missing, as where it is '
      'cut off); download it again'
    )
  try:
    table = pa.csv.read_csv(
      io.BytesIO(data),
      # One thread counts rows, and so can say which one is wrong.
      pa.csv.ReadOptions(
        use_threads=False,
        column_names=names,
        skip_rows=int(header and names is not None),
        encoding=encoding,
      ),
      pa.csv.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quoted else False,
        ignore_empty_lines=False,
      ),
      pa.csv.ConvertOptions(
        column_types=types,
        include_columns=list(types),
        timestamp_parsers=[time_format] if time_format else None,
      ),
    )
  except pa.ArrowKeyError as error:
    raise DataError(
      f'{where} has no column of this name ({str(error)[:200]}); download it '
      'again'
    ) from error
  # The decoder of PyArrow is that of Python.
  except (OSError, UnicodeError, pa.ArrowException) as error:
    raise unreadable(where, error) from error
  if not len(table):
    raise DataError(f'{where} is empty; download it again')
  return table


def refuse_rows(
  where: str, wrong: Mapping[str, pa.ChunkedArray | pa.Array], *, first: int = 1
) -> None:
  """Raises `DataError` for the first row with something wrong.

  Args:
    where: the name of the file.
    wrong: which rows have each thing that none may have, true or null.
    first: the number of the first row.
  """
  for what, rows in wrong.items():
    row = pc.index(pc.fill_null(rows, True), True).as_py()
    if row >= 0:
      raise DataError(
        f'{where}, row {row + first} has {what}; download it again'
      )
