"""Reads files of published data sets from a zip or wheel, and CSV by PyArrow.

Nothing is unpacked to disk. An archive is not opened if it is larger than any
expected one, and no file of it is read before its whole directory has been
checked.
"""

from __future__ import annotations

import io
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from adaptssr_jax.data.rows import DataError, quote_cell

# The expected archives have some hundred files and at most 25 MB.
_MOST_FILES = 100_000
_MOST_BYTES = 1 << 30
# Limits the archive file, whose directory is read at once and may fill it.
_MOST_ARCHIVE = 1 << 27
# Compression ratio: text reaches 5 to 20, zeros reach 1,000.
_MOST_PACKED = 100
# The ratio of a smaller file is not checked.
_SMALL = 1 << 20
_MOST_REASON = 200
# Exceptions raised for a damaged directory, data or compression method.
_DAMAGED = (
  zipfile.BadZipFile,
  zlib.error,
  EOFError,
  OSError,
  RuntimeError,
  ValueError,
  OverflowError,
)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_member(path: pathlib.Path, *members: str) -> bytes:
  """Reads one file of an archive, or of an archive inside it.

  Args:
    path: the archive.
    members: the path of the file in the archive; if that is an archive itself,
      followed by the path of a file in that, and so on.

  Raises:
    DataError: the archive lacks the file, is damaged, or is unsafe: it holds a
      path outside of it, a link, or too many files or bytes.
  """
  member = members[0]
  try:
    if path.stat().st_size > _MOST_ARCHIVE:
      raise _refused(path, f'it has more than {_MOST_ARCHIVE:,} bytes')
    data = path
    for member in members:
      source = io.BytesIO(data) if isinstance(data, bytes) else data
      with zipfile.ZipFile(source) as archive:
        _check(path, archive.infolist())
        entry = archive.getinfo(member)
        _check_packing(path, entry)
        # `archive.read` would unpack up to a gigabyte before it cuts the data.
        with archive.open(entry) as file:
          data = file.read(entry.file_size)
    return data
  except KeyError:
    raise DataError(f'{path} has no {member}; download it again') from None
  except DataError:
    raise
  except _DAMAGED as error:
    raise unreadable_error(f'{path}, {member}', error) from error


def unreadable_error(what: str, error: Exception) -> DataError:
  """The error for a file that cannot be read."""
  # The message may contain file names or cells of any length.
  reason = str(error)[:_MOST_REASON]
  return DataError(f'{what} cannot be read ({reason}); download it again')


def read_csv(
  where: str,
  data: bytes,
  types: Mapping[str, pa.DataType],
  *,
  names: Sequence[str] | None = None,
  skip: int = 0,
  delimiter: str = ',',
  quoted: bool = False,
  encoding: str = 'utf8',
  time_format: str = '',
) -> pa.Table:
  """Reads the columns of a CSV file that are named in `types`.

  Args:
    where: the name of the file, for messages.
    data: the contents of the file.
    types: {column: type} of the columns to read.
    names: the names of all columns; None if the first line has them.
    skip: the number of lines before that.
    delimiter: one character.
    quoted: whether cells may be in quotation marks.
    encoding: of the text.
    time_format: the `strptime` format of columns of times.

  Raises:
    DataError: the file is empty, lacks a column, or a row cannot be read; the
      message has the row number, where the first line of the file is row 1.
  """
  # PyArrow ends an open quotation at the end of the file.
  if quoted and data.count(b'"') % 2:
    raise DataError(
      f'{where} cannot be read (a quotation mark is missing, as where it is '
      'cut off); download it again'
    )
  try:
    table = pa.csv.read_csv(
      io.BytesIO(data),
      # With one thread, PyArrow's errors name the row.
      pa.csv.ReadOptions(
        use_threads=False,
        column_names=names,
        skip_rows=skip,
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
      f'{where} has no column that is needed ({str(error)[:200]}); '
      'download it again'
    ) from error
  # PyArrow decodes text by Python, hence UnicodeError.
  except (OSError, UnicodeError, pa.ArrowException) as error:
    raise unreadable_error(where, error) from error
  if not len(table):
    raise DataError(f'{where} is empty; download it again')
  return table


def refuse_rows(
  where: str, wrong: Mapping[str, pa.ChunkedArray | pa.Array], *, first: int = 1
) -> None:
  """Raises `DataError` for the first invalid row.

  Args:
    where: the name of the file.
    wrong: {description of an error: whether each row has it}; null is true.
    first: the number of the first row.
  """
  for what, rows in wrong.items():
    row = pc.index(pc.fill_null(rows, True), True).as_py()
    if row >= 0:
      raise DataError(
        f'{where}, row {row + first} has {what}; download it again'
      )


def _check(path: pathlib.Path, entries: list[zipfile.ZipInfo]) -> None:
  if len(entries) > _MOST_FILES:
    raise _refused(path, f'it holds {len(entries):,} files')
  names = set()
  for entry in entries:
    name = quote_cell(entry.filename)
    parts = pathlib.PurePosixPath(entry.filename.replace('\\', '/')).parts
    if '..' in parts or parts[:1] == ('/',) or ':' in ''.join(parts[:1]):
      raise _refused(path, f'{name} leads out of it')
    if stat.S_ISLNK(entry.external_attr >> 16):
      raise _refused(path, f'{name} is a link')
    if entry.filename in names:
      raise _refused(path, f'{name} is in it twice')
    names.add(entry.filename)
  if sum(entry.file_size for entry in entries) > _MOST_BYTES:
    raise _refused(path, f'it unpacks to more than {_MOST_BYTES:,} bytes')


def _check_packing(path: pathlib.Path, entry: zipfile.ZipInfo) -> None:
  name = quote_cell(entry.filename)
  if entry.compress_type not in _METHODS:
    raise _refused(path, f'{name} is packed in an unusual way')
  packed = max(entry.compress_size, 1)
  if entry.file_size > max(_SMALL, _MOST_PACKED * packed):
    ratio = entry.file_size / packed
    raise _refused(path, f'{name} unpacks to {ratio:.0f} x')


def _refused(path: pathlib.Path, why: str) -> DataError:
  return DataError(f'{path} is refused: {why}; download it again')
