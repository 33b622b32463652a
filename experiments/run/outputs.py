"""Output files that flags name: written atomically, and never overwritten."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from adaptssr_jax.files import atomic_path
from experiments.flags.binder import SettingsError


def check_absent(path: pathlib.Path, *, flag: str) -> None:
  """Raises `SettingsError` if a file or folder to write exists already."""
  if path.exists():
    raise SettingsError(
      f'--{flag}={path} exists: move it away, or choose another name'
    )


def check_new(path: pathlib.Path, *, flag: str) -> None:
  """Raises `SettingsError` if a file cannot be written as a new one."""
  if not path.parent.is_dir():
    raise SettingsError(
      f'--{flag}={path}: there is no folder {path.parent}; make it first'
    )
  check_absent(path, flag=flag)


@contextlib.contextmanager
def new_file(
  path: pathlib.Path,
  *,
  flag: str,
  errors: tuple[type[Exception], ...] = (OSError,),
) -> Iterator[pathlib.Path]:
  """Yields a path to write a new file at, which is renamed to `path` at exit.

  Args:
    errors: exceptions of a failed write, which become a `SettingsError`.
  """
  own = f'.{os.getpid()}'
  try:
    with atomic_path(path, suffix=f'{own}.part') as temporary:
      yield temporary
      if path.exists():
        other = temporary.rename(path.with_suffix(own + path.suffix))
        raise SettingsError(
          f'--{flag}={path} was written by another process in the meantime: '
          f'the file of this process is {other}'
        )
  except SettingsError:
    raise
  except errors as error:
    raise SettingsError(f'--{flag}={path} was not written: {error}') from error
