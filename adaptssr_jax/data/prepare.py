"""Atomic preparation of a data set, safe with several processes.

A data set is written into a temporary folder next to its final path, which is
renamed at the end. So a killed process leaves nothing that could be mistaken
for a data set. If two processes prepare the same data set, the first to finish
wins, and the other uses its result. Where the file system has locks, they take
turns, and the holder of the lock removes temporary folders of its machine,
since their processes must have died.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence

import tensorflow_datasets as tfds

from adaptssr_jax.data.beam import pipeline_options
from adaptssr_jax.data.builder import UserBuilder
from adaptssr_jax.data.prepared.columns import write_columns
from adaptssr_jax.data.rows import DataError, tell_nobody
from adaptssr_jax.files import locked

ARRAYS = 'arrays'
_LOCK = '.lock'
_SCRATCH = 'preparing'
# After which a folder that another machine left is not written any more.
_ABANDONED = 7 * 24 * 3600.0


def is_prepared(builder: UserBuilder) -> bool:
  """Whether the data set is there, whole."""
  return (pathlib.Path(builder.data_dir) / ARRAYS).exists()


def prepare(
  builder: UserBuilder,
  *,
  manual_dir: str | None = None,
  beam_options: Sequence[str] | None = None,
  tell: Callable[[str], None] | None = None,
) -> None:
  """Prepares a data set, unless another process does it meanwhile.

  Args:
    manual_dir: the folder of files that the user has to provide.
    beam_options: flags of the Apache Beam pipeline that makes the examples,
      such as '--runner=FlinkRunner'; None makes them in this process.
    tell: called with each line of progress: what is waited for, the start, and
      which parts of the source are left out.

  Raises:
    DataError: the source cannot be had or read; nothing is left behind.
  """
  # Other machines may write here, too, who have another working folder.
  folder = pathlib.Path(builder.data_dir).absolute()
  parent = folder.parent
  parent.mkdir(parents=True, exist_ok=True)
  tell = tell or tell_nobody
  waiting = f'Waiting for a process that prepares {parent}...'
  with locked(
    parent / _LOCK, on_wait=functools.partial(tell, waiting)
  ) as is_alone:
    if is_prepared(builder):
      return
    tell(f'Downloading and preparing {builder.data_dir}...')
    if is_alone:
      _remove_leftovers(parent)
    with tempfile.TemporaryDirectory(
      prefix=f'{_prefix()}.', dir=parent, ignore_cleanup_errors=True
    ) as scratch:
      made = pathlib.Path(scratch)
      if folder.exists():
        # What lacks where TFDS alone prepared the data set.
        made, folder = made / ARRAYS, folder / ARRAYS
        stored = _builder_in(builder, builder.data_dir_root)
        if not stored.info.initialized:
          raise DataError(
            f'{builder.data_dir} is no data set: delete it, and it will be '
            'prepared'
          )
        write_columns(stored, made)
      else:
        made = _make(builder, made, manual_dir, beam_options, tell)
      _publish(made, folder)


def _make(
  builder: UserBuilder,
  scratch: pathlib.Path,
  manual_dir: str | None,
  beam_options: Sequence[str] | None,
  tell: Callable[[str], None],
) -> pathlib.Path:
  """Makes the whole data set somewhere else; returns its folder."""
  staged = _builder_in(builder, scratch)
  staged.beam_options = beam_options
  staged.download_and_prepare(
    file_format='array_record',
    download_dir=builder.data_dir_root / 'downloads',
    download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir,
      try_download_gcs=False,
      beam_options=pipeline_options(beam_options),
    ),
  )
  for note in staged.info.metadata['notes']:
    tell(note)
  made = pathlib.Path(staged.data_dir)
  write_columns(staged, made / ARRAYS)
  return made


def _builder_in(builder: UserBuilder, data_dir: os.PathLike) -> UserBuilder:
  return type(builder)(config=builder.builder_config, data_dir=data_dir)


def _publish(made: pathlib.Path, folder: pathlib.Path) -> None:
  try:
    made.rename(folder)
  except OSError:
    # Without locks another process may have been faster: its is as good.
    if not folder.exists():
      raise


def _remove_leftovers(parent: pathlib.Path) -> None:
  """Removes what dead processes left; the lock has to be held."""
  for path in parent.glob(f'{_SCRATCH}.*'):
    # Some locks do not reach other machines, where it may still be written.
    is_ours = path.name.startswith(f'{_prefix()}.')
    if is_ours or time.time() - _last_written(path) > _ABANDONED:
      shutil.rmtree(path, ignore_errors=True)


def _last_written(folder: pathlib.Path) -> float:
  """When anything in a folder was, in seconds; 0 if it is gone meanwhile."""
  last = 0.0
  # Unlike `Path.rglob`, it goes on where a folder is removed meanwhile.
  for parent, _, names in os.walk(folder):
    for path in (parent, *(os.path.join(parent, name) for name in names)):
      with contextlib.suppress(FileNotFoundError):
        last = max(last, os.path.getmtime(path))
  return last


def _prefix() -> str:
  machine = re.sub('[^0-9A-Za-z-]', '-', platform.node())
  return f'{_SCRATCH}.{machine}'
