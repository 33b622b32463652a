"""Atomic preparation of a data set, safe with several processes.

A data set is written into a temporary folder next to its final path, which is
renamed at the end. So a killed process leaves nothing that could be mistaken
for a data set. If two processes prepare the same data set, the first to finish
wins, and the other uses its result. Where the file system has locks, they take
turns, and the holder of the lock removes the temporary folders of this machine,
since their processes must have died. Folders that other machines left stay.
"""

from __future__ import annotations

import functools
import pathlib
import platform
import re
import shutil
import tempfile
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


def is_prepared(builder: UserBuilder) -> bool:
  """Whether the data set has been prepared, by `prepare`."""
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
    exists = folder.exists()
    if is_prepared(builder):
      return
    if exists:
      raise DataError(
        f'{builder.data_dir} is no data set that `adaptssr_jax.data.load` '
        'prepared: delete it, and it will be prepared'
      )
    tell(f'Downloading and preparing {builder.data_dir}...')
    if is_alone:
      for leftover in parent.glob(f'{_prefix()}.*'):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
      prefix=f'{_prefix()}.', dir=parent, ignore_cleanup_errors=True
    ) as scratch:
      made = _make(builder, scratch, manual_dir, beam_options, tell)
      _publish(made, folder)


def _make(
  builder: UserBuilder,
  scratch: str,
  manual_dir: str | None,
  beam_options: Sequence[str] | None,
  tell: Callable[[str], None],
) -> pathlib.Path:
  """Prepares the data set below `scratch` and returns its folder."""
  staged = type(builder)(config=builder.builder_config, data_dir=scratch)
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


def _publish(made: pathlib.Path, folder: pathlib.Path) -> None:
  try:
    made.rename(folder)
  except OSError:
    # Without locks another process may have been faster: its is as good.
    if not folder.exists():
      raise


def _prefix() -> str:
  """Begins the names of the temporary folders of this machine."""
  # Some locks do not reach other machines, which may still be writing theirs.
  machine = re.sub('[^0-9A-Za-z-]', '-', platform.node())
  return f'{_SCRATCH}.{machine}'
