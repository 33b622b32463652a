"""Preparing a data set with Apache Beam, on as many machines as it is given.

    data.load(builder, beam_options=['--runner=FlinkRunner', ...])

The examples and their order are the same as without Beam. Workers need this
package, and the source and the data folder under the same absolute paths; all
else is exchanged through Beam. One worker draws the order of the rows and the
splits (about 60 bytes a row) and collects the item names; every worker receives
the names and 16 bytes a row. At the end, the process that started the pipeline
copies the records into memory-mapped arrays.

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
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.portable_runner import PortableRunner
  except ImportError as error:
    raise DataError(
      f"--beam needs Apache Beam ({error}): pip install -e '.[beam]'"
    ) from None
  for option in options:
    # Beam would leave it out, and with it what somebody wanted.
    if not option.startswith('--'):
      reason = f'{option!r} is none; write --NAME=VALUE, with commas between'
      raise _refused(options, reason)
  given = list(options)
  if not any(option.startswith('--runner=') for option in given):
    given.append(_LOCAL_RUNNER)
  reason, said = '', io.StringIO()
  try:
    # Outside, because it may set up logging to what is then sys.stderr.
    parsed = PipelineOptions(given)
    with contextlib.redirect_stderr(said):
      known = parsed.get_all_options()
      wanted = parsed.get_all_options(retain_unknown_options=True)
      pipeline = beam.Pipeline(options=parsed)
    shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
    unknown = sorted(wanted.keys() - known.keys())
    # The server of such a runner has options of its own.
    if unknown and not isinstance(pipeline.runner, PortableRunner):
      reason = f'there is no option --{unknown[0].partition("=")[0]}'
  except SystemExit:
    reason = said.getvalue().strip().rpartition('error: ')[2] or 'it only helps'
  # A runner may be any class of any module.
  except Exception as error:
    reason = str(error)
  if reason:
    raise _refused(options, reason)
  return PipelineOptions(given)


def _refused(options: Sequence[str], reason: str) -> DataError:
  return DataError(
    f'--beam_options={",".join(options)} cannot be used: '
    f'{reason[:_MOST_REASON]}'
  )


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
