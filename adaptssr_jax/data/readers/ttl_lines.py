"""The lines of the TTL files as arrays, and numbers for their raw ids."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import DataError, Kind, shown

# Bytes that are parsed at once; a line may not be longer.
_BLOCK = 1 << 23
# A longer number may not fit int64.
_MOST_DIGITS = 18
_NUMBER = f'[0-9]{{1,{_MOST_DIGITS}}}'
_NUMBERS = f'{_NUMBER}(,{_NUMBER})*'
_LINE = {
  'pretrain': f'^{_NUMBERS}$',
  'classification': f'^{_NUMBERS},,{_NUMBER}$',
  'ranking': f'^{_NUMBERS},,{_NUMBERS}$',
}
# How each of them may begin, as far as it goes.
_ITEMS = f'({_NUMBER},)*({_NUMBER})?'
_BEGINNING = {
  'pretrain': _ITEMS,
  'classification': f'{_NUMBERS},,({_NUMBER})?|{_ITEMS}',
  'ranking': f'{_NUMBERS},,{_ITEMS}|{_ITEMS}',
}
_EXAMPLE = {
  'pretrain': '12,7,301',
  'classification': '12,7,301,,4',
  'ranking': '12,7,301,,55,902',
}
# What may stand in a line as well: blanks around a number, and no items at all.
_UNUSUAL = (
  ('(^|,)[ \t]+([0-9])', r'\1\2'),
  ('([0-9])[ \t]+(,|$)', r'\1\2'),
  ('^[ \t]*(,,|$)', r'0\1'),
)
# No line that is right holds this byte: each line is one cell.
_DELIMITER = '\x01'


class Lines(NamedTuple):
  """Consecutive lines of a file.

  Args:
    number: the number of each line that has behaviours, int64 [rows].
    items: the raw item ids of each of them, without zeros, int64.
    tails: what follows ',,' in each of them, its label or targets, int64.
    dropped: the numbers of the lines without behaviours, int64.
  """

  number: np.ndarray
  items: Ragged
  tails: Ragged
  dropped: np.ndarray


def read_lines(
  path: pathlib.Path,
  kind: Kind,
  *,
  begin: int = 0,
  end: int | None = None,
  first: int = 1,
) -> Iterator[Lines]:
  """Parses a file, or the lines of it that begin between two bytes.

  Args:
    kind: `pretrain` for lines without ',,'; `classification` for one number
      after it; `ranking` for one or more.
    begin: the first byte at which a line may begin.
    end: the first byte at which no line may begin any more; None for no end.
    first: the number of the first of these lines.

  Yields:
    All lines, some megabytes at a time.

  Raises:
    DataError: a line is wrong; the message has the file, the line and why.
  """
  for texts in _read_texts(path, begin, end, first):
    yield _parse(texts, kind, path, first)
    first += len(texts)


def count_lines(path: pathlib.Path, begin: int, end: int) -> int:
  """How many lines of a file begin between two bytes."""
  return sum(map(len, _read_texts(path, begin, end, 1)))


def _read_texts(
  path: pathlib.Path, begin: int, end: int | None, first: int
) -> Iterator[pa.BinaryArray]:
  end = path.stat().st_size if end is None else end
  with path.open('rb') as file:
    begin, end = _line_start(file, begin), _line_start(file, end)
  if begin == end:
    return
  count = 0
  try:
    with pa.OSFile(str(path)) as file:
      for batch in pyarrow.csv.open_csv(
        file.get_stream(begin, end - begin),
        pyarrow.csv.ReadOptions(
          use_threads=False, block_size=_BLOCK, column_names=['line']
        ),
        pyarrow.csv.ParseOptions(
          delimiter=_DELIMITER, quote_char=False, ignore_empty_lines=False
        ),
        pyarrow.csv.ConvertOptions(column_types={'line': pa.binary()}),
      ):
        yield batch.column('line')
        count += len(batch)
  except pa.ArrowInvalid as error:
    reason = f'the line has more than {_BLOCK:,} bytes'
    delimiter = re.search('Row #([0-9]+): Expected 1 columns', str(error))
    if delimiter:
      count = int(delimiter[1]) - 1
      reason = f'{_DELIMITER!r} is wrong there'
    raise _wrong(path, first + count, reason) from None


def _line_start(file: BinaryIO, at: int) -> int:
  """Where the first line begins that does not begin before a byte."""
  if at:
    file.seek(at - 1)
    file.readline()
  return file.tell()


def _parse(
  texts: pa.BinaryArray, kind: Kind, path: pathlib.Path, first: int
) -> Lines:
  is_right = pc.match_substring_regex(texts, _LINE[kind])
  if not pc.all(is_right).as_py():
    tidy = texts
    for pattern, replacement in _UNUSUAL:
      tidy = pc.replace_substring_regex(tidy, pattern, replacement)
    wrong = pc.index(pc.match_substring_regex(tidy, _LINE[kind]), False).as_py()
    if wrong >= 0:
      reason = _reason(tidy[wrong].as_py(), kind)
      raise _wrong(path, first + wrong, reason)
    texts = tidy
  tails = Ragged(np.zeros(0, np.int64), np.zeros(len(texts) + 1, np.int64))
  if kind != 'pretrain':
    halves = pc.split_pattern(texts, ',,')
    texts = pc.list_element(halves, 0)
    tails = _integers(pc.list_element(halves, 1))
  items = _without_zeros(_integers(texts))
  is_kept = items.lengths > 0
  number = first + np.arange(len(items))
  if is_kept.all():
    return Lines(number, items, tails, number[:0])
  kept = np.flatnonzero(is_kept)
  dropped = number[~is_kept]
  return Lines(number[kept], items.take(kept), tails.take(kept), dropped)


def _integers(texts: pa.BinaryArray) -> Ragged:
  cells = pc.split_pattern(texts, ',')
  values = cells.values.cast(pa.int64()).to_numpy()
  return Ragged(values, cells.offsets.to_numpy().astype(np.int64))


def _without_zeros(rows: Ragged) -> Ragged:
  kept = np.flatnonzero(rows.values)
  if len(kept) == len(rows.values):
    return rows
  return Ragged(rows.values[kept], np.searchsorted(kept, rows.offsets))


def _reason(line: bytes, kind: Kind) -> str:
  """What is wrong with a line."""
  right = re.match(_BEGINNING[kind].encode(), line).end()
  rest = line[right:].decode(errors='replace')
  wrong = f'{shown(rest)} is wrong there' if rest else 'it ends too early'
  return (
    f'{wrong}; a line is like {_EXAMPLE[kind]}, and no number has more than '
    f'{_MOST_DIGITS} digits'
  )


def _wrong(path: pathlib.Path, line: int, reason: str) -> DataError:
  return DataError(f'{path}, line {line}: {reason}')


class Numbering:
  """Numbers the raw ids of many rows from 1, in the order they first appear.

  Args:
    known: ids that have the first numbers, int64.

  Example:
    >>> numbering = Numbering()
    >>> numbering.append(Ragged.from_rows([[70, 20], [70]], np.int64))
    >>> numbering.append(Ragged.from_rows([[9, 20]], np.int64))
    >>> rows, ids = numbering.finish()
    >>> rows.values, rows.lengths, ids.to_pylist()
    (array([1, 2, 1, 3, 2], dtype=int32), array([2, 1, 2]), [70, 20, 9])
  """

  def __init__(self, known: pa.Array | None = None) -> None:
    known = pa.array([], pa.int64()) if known is None else known
    # Each block has numbers of its own until the end: to look all ids up in
    # the dictionary of all takes twice the time.
    self._dictionaries = [known]
    self._values = bytearray()
    self._lengths = []

  def append(self, rows: Ragged) -> None:
    """Adds rows of raw ids, int64."""
    block = pa.array(rows.values).dictionary_encode()
    self._dictionaries.append(block.dictionary)
    self._values += memoryview(block.indices.to_numpy())
    self._lengths.append(rows.lengths)

  def finish(self) -> tuple[Ragged, pa.Array]:
    """The numbers of all rows, int32, and the ids in their order."""
    unified = pa.chunked_array(
      pa.DictionaryArray.from_arrays(
        pa.array(np.arange(len(ids), dtype=np.int32)), ids
      )
      for ids in self._dictionaries
    ).unify_dictionaries()
    self._dictionaries.clear()
    values = np.frombuffer(self._values, np.int32)
    start = 0
    for chunk, lengths in zip(unified.chunks[1:], self._lengths, strict=True):
      block = slice(start, start + lengths.sum())
      values[block] = chunk.indices.to_numpy()[values[block]] + 1
      start = block.stop
    rows = Ragged.from_lengths(values, np.concatenate(self._lengths))
    ids = unified.chunk(0).dictionary
    # As much as the rows take, which Arrow would keep for later.
    del unified, chunk
    pa.default_memory_pool().release_unused()
    return rows, ids
