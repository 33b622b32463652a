"""Preparing a data set with Apache Beam, on as many machines as it is given.

    data.load(builder, beam_options=['--runner=FlinkRunner', ...])

The examples are those that are made without Beam, in the same order. The
workers read the source and write into the data folder, both under the same
absolute paths, and have this package installed; between them goes only what
Beam sends. On one of them are drawn the order of the rows and the splits, in
some 60 bytes a row, and put together the names of the items. The process that
starts the pipeline at the end copies the records into memory-mapped arrays.

So prepare `ttl` and `user_tables`. The other data sets are small, or synthetic:
they are prepared in this process.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import shutil
import tempfile
import types
from collections.abc import Iterator, Sequence
from typing import Any

from adaptssr_jax.data.rows import DataError

# Unlike Beam's default, it never downloads a program and starts that instead.
_LOCAL_RUNNER = '--runner=FnApiRunner'
_MOST_REASON = 500
# The errors of a worker, by the suffix of the file in which each is left.
_ERRORS = {'.data': DataError, '.os': OSError}


def pipeline_options(options: Sequence[str] | None) -> Any:
  """The options as Beam wants them; None if there are none.

  Raises:
    DataError: Apache Beam is not installed, or has no such options.
  """
  if options is None:
    return None
  beam = _beam()
  reason = _objection(beam, options)
  if reason:
    raise DataError(
      f'--beam_options={",".join(options)} cannot be used: '
      f'{reason[:_MOST_REASON]}'
    )
  return _options(beam, options)


def leave_error(error: DataError | OSError, folder: str) -> None:
  """Leaves an error of a worker in a folder, for `errors_left_in`."""
  # Each runner has its own way to show an exception, as part of a long text.
  suffix = '.data' if isinstance(error, DataError) else '.os'
  with tempfile.NamedTemporaryFile(
    'w', suffix=suffix, prefix='error', dir=folder, delete=False
  ) as file:
    file.write(str(error))


@contextlib.contextmanager
def errors_left_in(folder: pathlib.Path) -> Iterator[None]:
  """Turns an exception of a pipeline into that of one of its workers.

  Raises:
    DataError, OSError: what a worker left in the folder.
  """
  try:
    yield
  except Exception:
    for path in sorted(folder.glob('error*')):
      raise _ERRORS[path.suffix](path.read_text()) from None
    raise


def _options(beam: types.ModuleType, options: Sequence[str]) -> Any:
  given = list(options)
  if not any(option.startswith('--runner=') for option in given):
    given.append(_LOCAL_RUNNER)
  return beam.options.pipeline_options.PipelineOptions(given)


def _objection(beam: types.ModuleType, options: Sequence[str]) -> str:
  """What Beam has against the options, or nothing."""
  for option in options:
    # Beam leaves it out, and with it what somebody wanted.
    if not option.startswith('--'):
      return f'{option!r} is none; write --NAME=VALUE, with commas between'
  said = io.StringIO()
  try:
    # Outside, because it may set up logging to what is then sys.stderr.
    parsed = _options(beam, options)
    with contextlib.redirect_stderr(said):
      known = parsed.get_all_options()
      given = parsed.get_all_options(retain_unknown_options=True)
      pipeline = beam.Pipeline(options=parsed)
  except SystemExit:
    return said.getvalue().strip().rpartition('error: ')[2] or 'it only helps'
  # A runner may be any class of any module.
  except Exception as error:
    return str(error)
  shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
  unknown = sorted(given.keys() - known.keys())
  # The server of such a runner has options of its own.
  portable = beam.runners.portability.portable_runner.PortableRunner
  if unknown and not isinstance(pipeline.runner, portable):
    return f'there is no option --{unknown[0].partition("=")[0]}'
  return ''


def _beam() -> types.ModuleType:
  try:
    import apache_beam
    import apache_beam.options.pipeline_options
    import apache_beam.runners.portability.portable_runner
  except ImportError as error:
    raise DataError(
      f"--beam needs Apache Beam ({error}): pip install -e '.[beam]'"
    ) from None
  return apache_beam
