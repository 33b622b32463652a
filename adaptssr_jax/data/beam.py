"""Prepares a data set with Apache Beam, on one or many machines.

    data.load(builder, beam_options=['--runner=FlinkRunner', ...])

The examples and their order are the same as without Beam. Workers need this
package, and access to the source and the data folder under the same absolute
paths; all other data passes through Beam. One worker draws the order of the
rows and the splits (about 60 bytes a row) and collects the item names; every
worker receives the names and 16 bytes a row. At the end, the process that
started the pipeline copies the records into memory-mapped arrays.

Only `ttl` and `user_tables` use Beam. The other data sets are small or
synthetic, and are prepared in this process.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from adaptssr_jax.data.rows import DataError

# Beam's default runner may download a program and start that instead.
_LOCAL_RUNNER = '--runner=FnApiRunner'
_MOST_REASON = 500
# {suffix of the file that a worker leaves: exception}.
_ERRORS = {'.data': DataError, '.os': OSError}


def pipeline_options(options: Sequence[str] | None) -> Any:
  """Converts flags of --beam_options to Beam's `PipelineOptions`.

  Returns:
    The options; None for None. Options that Beam does not know are left out,
    with a warning by Beam.

  Raises:
    DataError: Apache Beam is not installed or refuses the options.
  """
  if options is None:
    return None
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise DataError(
      f"--beam needs Apache Beam ({error}): pip install -e '.[beam]'"
    ) from None
  given = list(options)
  if not any(option.startswith('--runner=') for option in given):
    given.append(_LOCAL_RUNNER)
  printed = io.StringIO()
  try:
    for option in options:
      # Beam would ignore it.
      if not option.startswith('--'):
        raise ValueError(f'{option!r} is not of the form --NAME=VALUE')
    # Not inside: Beam may set up logging, to the `sys.stderr` of that moment.
    parsed = PipelineOptions(given)
    with contextlib.redirect_stderr(printed):
      parsed.get_all_options(display_warnings=True)
      pipeline = beam.Pipeline(options=parsed)
    shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
  # A runner may be any class of any module; a wrong value ends the parser.
  except (Exception, SystemExit) as error:
    reason = str(error)
    if isinstance(error, SystemExit):
      _, _, reason = printed.getvalue().strip().rpartition('error: ')
    raise DataError(
      f'--beam_options={",".join(options)} cannot be used: '
      f'{reason[:_MOST_REASON] or "it only prints help"}'
    ) from None
  return PipelineOptions(given)


def leave_error(error: DataError | OSError, folder: str) -> None:
  """Writes an error of a worker into a folder, for `errors_left_in`."""
  # Each runner embeds an exception in a long text of its own.
  suffix = '.data' if isinstance(error, DataError) else '.os'
  with tempfile.NamedTemporaryFile(
    'w', suffix=suffix, prefix='error', dir=folder, delete=False
  ) as file:
    file.write(str(error))


@contextlib.contextmanager
def errors_left_in(folder: pathlib.Path) -> Iterator[None]:
  """Replaces an exception of a pipeline by that of one of its workers.

  Raises:
    DataError, OSError: the error that a worker left in the folder.
  """
  try:
    yield
  except Exception:
    for path in sorted(folder.glob('error*')):
      raise _ERRORS[path.suffix](path.read_text()) from None
    raise
