"""Reading a file of a zip or wheel that somebody else made.

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
