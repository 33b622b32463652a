"""Atomic writes of files, and file locks that a dead process releases."""

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
  """Holds a file lock, which the system releases when the process dies.

  Args:
    path: the lock file; it is created, and not removed.
    timeout: seconds to wait if another process holds the lock.
    on_wait: called after the timeout; the lock is then waited for without a
      limit. None raises `filelock.Timeout` instead.

  Yields:
    True if the lock is held, False if the file system has no locks.

  Raises:
    filelock.Timeout: another process holds the lock, and `on_wait` is None.
    OSError: the lock file cannot be written.
  """
  path = pathlib.Path(path)
  path.open('a').close()
  # Otherwise the library would use the existence of a file as the lock, and
  # the file would outlive a process that died on another machine.
  lock = filelock.FileLock(path, fallback_to_soft=False)
  try:
    lock.acquire(timeout=timeout)
  except filelock.Timeout:
    if on_wait is None:
      raise
    on_wait()
    lock.acquire()
  except OSError:
    pass  # The file could be opened: its file system has no locks.
  try:
    yield lock.is_locked
  finally:
    lock.release()


@contextlib.contextmanager
def atomic_path(
  path: str | os.PathLike, *, suffix: str = '.part'
) -> Iterator[pathlib.Path]:
  """Writes a file atomically: yields a temporary path, then renames it.

  Readers never see a partly written file, and an existing file is kept if
  writing fails.

  Args:
    path: the file to write.
    suffix: is appended to `path` for the temporary path. Processes that may
      write the same file at the same time need different suffixes.

  Yields:
    The temporary path, to write to.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + suffix)
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
