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
import os
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
from adaptssr_jax.data.rows import DataError, ignore_progress
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
  on_progress: Callable[[str], None] = ignore_progress,
) -> None:
  """Prepares a data set, unless another process prepares it meanwhile.

  Args:
    manual_dir: the folder of files that the user has to provide.
    beam_options: flags of an Apache Beam pipeline that prepares the examples,
      such as '--runner=FlinkRunner'; None prepares them in this process.
    on_progress: called with each line of progress, such as a wait for another
      process, or which parts of the source are left out.

  Raises:
    DataError: the source cannot be found or read. Nothing is left behind.
  """
  # Beam workers may run in another working directory.
  folder = pathlib.Path(builder.data_dir).absolute()
  parent = folder.parent
  parent.mkdir(parents=True, exist_ok=True)
  waiting = f'Waiting for a process that prepares {parent}...'
  with locked(
    parent / _LOCK, on_wait=functools.partial(on_progress, waiting)
  ) as is_alone:
    if is_prepared(builder):
      return
    on_progress(f'Downloading and preparing {builder.data_dir}...')
    if is_alone:
      for leftover in parent.glob(f'{_prefix()}.*'):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
      prefix=f'{_prefix()}.', dir=parent, ignore_cleanup_errors=True
    ) as scratch:
      if folder.exists():
        made, folder = pathlib.Path(scratch) / ARRAYS, folder / ARRAYS
        _write_arrays(builder, made)
      else:
        staged = _builder_in(builder, pathlib.Path(scratch))
        staged.beam_options = beam_options
        staged.on_progress = on_progress
        made = _make(staged, builder.data_dir_root / 'downloads', manual_dir)
      _publish(made, folder)


def _write_arrays(builder: UserBuilder, arrays: pathlib.Path) -> None:
  """Writes the arrays of a data set that TFDS alone has prepared."""
  # A builder reads what is prepared when it is made, which may be too early.
  stored = _builder_in(builder, builder.data_dir_root)
  if not stored.info.initialized:
    raise DataError(
      f'{builder.data_dir} is no data set of TensorFlow Datasets: delete it, '
      'and it will be prepared'
    )
  write_columns(stored, arrays)


def _builder_in(builder: UserBuilder, data_dir: os.PathLike) -> UserBuilder:
  return type(builder)(config=builder.builder_config, data_dir=data_dir)


def _make(
  builder: UserBuilder, downloads: os.PathLike, manual_dir: str | None
) -> pathlib.Path:
  """Prepares the data set of a builder and returns its folder."""
  builder.download_and_prepare(
    file_format='array_record',
    download_dir=downloads,
    download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir,
      try_download_gcs=False,
      beam_options=pipeline_options(builder.beam_options),
    ),
  )
  for note in builder.info.metadata['notes']:
    builder.on_progress(note)
  made = pathlib.Path(builder.data_dir)
  write_columns(builder, made / ARRAYS)
  return made


def _publish(made: pathlib.Path, folder: pathlib.Path) -> None:
  try:
    made.rename(folder)
  except OSError:
    # Without locks another process may have been faster, with the same result.
    if not folder.exists():
      raise


def _prefix() -> str:
  """Begins the names of the temporary folders of this machine."""
  # Some locks do not reach other machines, which may still be writing theirs.
  machine = re.sub('[^0-9A-Za-z-]', '-', platform.node())
  return f'{_SCRATCH}.{machine}'
