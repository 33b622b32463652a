"""Standard output and standard error, whose loss does not end a run."""

import io
import os
import sys
from typing import Any, TextIO


class LastingStream(io.TextIOWrapper):
  """A text stream that keeps the errors of its file instead of raising them.

  The reader of a pipe may end before the run does (`| head`), the disk of a
  redirected output may be full, and a terminal may be closed.

  Args:
    stream: the stream that this one replaces. Characters that its encoding
      does not have are escaped.

  Attributes:
    error: the first error, None without one.
  """

  def __init__(self, stream: TextIO):
    self.error: OSError | None = None
    # The original is kept, since it would close the file when it is freed.
    self._stream = stream
    super().__init__(
      stream.buffer,
      encoding=stream.encoding,
      errors='backslashreplace',
      line_buffering=stream.line_buffering,
      write_through=stream.write_through,
    )

  def write(self, text: str) -> int:
    """Writes a text, unless the file cannot be written."""
    try:
      return super().write(text)
    except OSError as error:
      self.error = self.error or error
      return len(text)

  def flush(self) -> None:
    """Flushes the file, unless it cannot be written."""
    try:
      super().flush()
    except OSError as error:
      self.error = self.error or error


def make_streams_last() -> None:
  """Makes `sys.stdout` and `sys.stderr` last as long as the process.

  A standard stream that is closed is opened on the null device. Otherwise the
  next file to be opened, such as the metrics of a run, would get its number,
  and would receive the messages of libraries.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      # The system gives the lowest free number.
      os.open(os.devnull, os.O_RDWR)
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    stream = getattr(sys, name) or os.fdopen(number, 'w')
    setattr(sys, name, LastingStream(stream))


def lost_output(stream: Any) -> str:
  """Why output was lost, for a message; '' if none was, or nobody reads it.

  Example:
    >>> lost_output(sys.stdout)
    ''
  """
  error = getattr(stream, 'error', None)
  if error is None or isinstance(error, BrokenPipeError):
    return ''
  return error.strerror
