"""Reads the lines of large text files, some megabytes at a time.

A span of a file contains the lines that begin in it, so that the spans of a
file can be read independently.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.rows import DataError

PARQUET = ('.parquet', '.pq')
# Text in these formats is decompressed while it is read.
COMPRESSED = ('.gz', '.bz2', '.zst')
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


def format_of(path: pathlib.Path) -> str:
  """The suffix of the format of a file, without that of a compression.

  Example:
    >>> format_of(pathlib.Path('a.CSV')), format_of(pathlib.Path('a.csv.gz'))
    ('.csv', '.csv')
  """
  return (path.with_suffix('') if is_compressed(path) else path).suffix.lower()


def is_compressed(path: pathlib.Path) -> bool:
  """Whether a file is compressed as a whole, by its suffix."""
  return path.suffix.lower() in COMPRESSED


def is_parquet(path: pathlib.Path) -> bool:
  """Whether the suffix of a file is that of Parquet."""
  return format_of(path) in PARQUET


def open_text(path: pathlib.Path) -> BinaryIO:
  """Opens a text file for reading; if it is compressed, decompresses it."""
  if not is_compressed(path):
    return path.open('rb')
  compression = pa.Codec.detect(path.name.lower()).name
  return io.BufferedReader(pa.input_stream(path, compression, _BYTES))


def text_blocks(span: Span) -> Iterator[Block]:
  """Yields the lines of a span in blocks."""
  with open_text(span.path) as file:
    offset, end, line = span.start, span.end, span.line
    if offset:
      file.seek(offset - 1)
      offset += len(file.readline()) - 1
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
