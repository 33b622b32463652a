"""Reads the lines of large text files, some megabytes at a time.

A span of a file contains the lines that begin in it, so that the spans of a
file can be read independently.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.rows import DataError

PARQUET = ('.parquet', '.pq')
# Bytes that are read at a time.
_BYTES = 1 << 24


class Span(NamedTuple):
  """A file, or consecutive lines of a file.

  Args:
    path: the file.
    start: a byte offset; the span contains lines that begin at it or after it.
      For Parquet, the index of the first row group.
    end: the `start` of the next span; None at the end of the file.
    line: the line number of the first line, from 1.
  """

  path: pathlib.Path
  start: int = 0
  end: int | None = None
  line: int = 1


class Block(NamedTuple):
  """Consecutive complete lines, and the line number of the first one."""

  line: int
  text: bytes

  def to_arrow(self) -> pa.LargeBinaryArray:
    """The lines without line ends and without a byte-order mark."""
    text = self.text.replace(b'\r\n', b'\n')
    if self.line == 1:
      # Spreadsheets begin a file with a byte-order mark.
      text = text.removeprefix(b'\xef\xbb\xbf')
    if not text.endswith(b'\n'):
      text += b'\n'
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord('\n')) + 1
    buffers = [None, pa.py_buffer(np.append(0, ends)), pa.py_buffer(text)]
    lines = pa.Array.from_buffers(pa.large_binary(), len(ends), buffers)
    return pc.binary_slice(lines, 0, -1)


def is_parquet(path: pathlib.Path) -> bool:
  """Whether the suffix of a file is that of Parquet."""
  return path.suffix.lower() in PARQUET


def text_blocks(span: Span) -> Iterator[Block]:
  """Yields the lines of a span in blocks."""
  with span.path.open('rb') as file:
    if span.start:
      file.seek(span.start - 1)
      file.readline()
    offset, end, line = file.tell(), span.end, span.line
    while end is None or offset < end:
      text = file.read(_BYTES if end is None else min(_BYTES, end - offset))
      if text and not text.endswith(b'\n'):
        text += file.readline()
      if not text:
        break
      yield Block(line, text)
      offset += len(text)
      line += text.count(b'\n')


def decoded(
  path: pathlib.Path, lines: Iterable[bytes], line: int = 1, what: str = 'line'
) -> Iterator[str]:
  """Yields lines as text; raises `DataError` for one that is not UTF-8.

  A message names the file and the number of the line, which is called `what`.
  """
  for number, text in enumerate(lines, line):
    try:
      # Spreadsheets begin a file with a byte-order mark.
      yield text.decode('utf-8-sig' if number == 1 else 'utf-8')
    except UnicodeDecodeError as error:
      raise DataError(
        f'{path}, {what} {number}: not UTF-8: {error.reason}'
      ) from None
