"""Atomic writes of files, and file locks that end with their process."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

import filelock


@contextlib.contextmanager
def locked(
  path: str | os.PathLike,
  *,
  timeout: float = 0.0,
  on_wait: Callable[[], None] | None = None,
) -> Iterator[bool]:
  """Holds the lock of a file; the system takes it back from a dead process.

  Args:
    path: the lock file; it is created, and not removed.
    timeout: seconds to wait if another process holds the lock.
    on_wait: called after the timeout; the lock is then waited for without a
      limit. None raises `filelock.Timeout` instead.

  Yields:
    True if the lock is held, False if the file system has no locks.

  Raises:
    filelock.Timeout: another process holds it, and there is no `on_wait`.
    OSError: the file cannot be written.
  """
  path = pathlib.Path(path)
  path.open('a').close()
  # The library would else create a file in place of a lock, which outlives a
  # process that died on another machine.
  lock = filelock.FileLock(path, fallback_to_soft=False)
  try:
    lock.acquire(timeout=timeout)
  except filelock.Timeout:
    if on_wait is None:
      raise
    on_wait()
    lock.acquire()
  except OSError:
    pass  # The file could be opened, so it is the locks that are missing.
  try:
    yield lock.is_locked
  finally:
    lock.release()


@contextlib.contextmanager
def atomic_path(
  path: str | os.PathLike, *, suffix: str = '.part'
) -> Iterator[pathlib.Path]:
  """A path to write a file at, which is then renamed to its place.

  So a reader never finds half of the file, and what was there before stays
  there if writing fails.

  Args:
    suffix: is added to it; where several processes may write the same file, it
      has to be another one for each.

  Yields:
    The path to write at.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + suffix)
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
