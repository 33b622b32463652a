"""The lines of the TTL files as arrays, and numbers for their raw ids."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import DataError, Kind, shown

# Bytes parsed at once: large enough for numpy, small beside the ids of a file.
_BLOCK = 1 << 22
_COMMA, _NEWLINE = b',\n'
# A longer number may not fit int64.
_MOST_DIGITS = 18


class Block(NamedTuple):
  """Consecutive lines of a file.

  Args:
    first_line: number of the first one, from 1.
    items: raw ids of each line, without zeros.
    tails: what follows ',,' in each line: its label, or its targets.
  """

  first_line: int
  items: Ragged
  tails: Ragged


class Span(NamedTuple):
  """The lines of a file that begin between two bytes, `begin` and `end`."""

  path: str
  kind: Kind
  begin: int
  end: int


def spans_of(path: pathlib.Path, kind: Kind, size: int) -> list[Span]:
  """Cuts a file into spans of so many bytes."""
  total = path.stat().st_size
  return [
    Span(str(path), kind, begin, min(begin + size, total))
    for begin in range(0, total, size)
  ]


def read_span(span: Span) -> list[Block]:
  """Parses a span, whose first line counts as line 1.

  Raises:
    DataError: as `read_blocks`; the message has the line's number in the file.
  """
  path = pathlib.Path(span.path)
  try:
    return list(read_blocks(path, span.kind, begin=span.begin, end=span.end))
  except DataError:
    # Only now is it worth the time to count the lines before.
    line = 1 + _newlines(path, span.begin)
    return list(
      read_blocks(path, span.kind, begin=span.begin, end=span.end, line=line)
    )


def _newlines(path: pathlib.Path, end: int) -> int:
  count = 0
  with path.open('rb') as file:
    while text := file.read(min(_BLOCK, end - file.tell())):
      count += text.count(b'\n')
    # The line that goes on over the end is not of the span behind it.
    file.seek(max(end - 1, 0))
    return count + (end > 0 and file.read(1) != b'\n')


def read_blocks(
  path: pathlib.Path,
  kind: Kind,
  *,
  begin: int = 0,
  end: int | None = None,
  line: int = 1,
) -> Iterator[Block]:
  """Parses a file, or the lines of it that begin between two bytes.

  Args:
    path: of the file.
    kind: `pretrain` for lines without ',,'; `classification` for one number
      after it; `ranking` for one or more.
    begin: the first byte at which a line may begin.
    end: the first one at which none may begin any more; None for no end.
    line: number of the first of these lines.

  Yields:
    All lines, block by block.

  Raises:
    DataError: a line is wrong; the message has the file, the line and why.
  """
  end = path.stat().st_size if end is None else end
  with path.open('rb') as file:
    if begin:
      file.seek(begin - 1)
      file.readline()
    while text := file.read(max(0, min(_BLOCK, end - file.tell()))):
      text += b'' if text.endswith(b'\n') else file.readline()
      text = text.replace(b'\r\n', b'\n').removesuffix(b'\n') + b'\n'
      columns = _parse(text, kind)
      if columns is None:
        columns = _parse_lines(text, kind, path, line)
      yield Block(line, *columns)
      line += len(columns[0])


def _parse(text: bytes, kind: Kind) -> tuple[Ragged, Ragged] | None:
  """Items and tails of all lines; None if anything is out of the ordinary."""
  characters = np.frombuffer(text, np.uint8)
  separators = np.flatnonzero((characters < ord('0')) | (characters > ord('9')))
  found = characters[separators]
  is_newline = found == _NEWLINE
  if not (is_newline | (found == _COMMA)).all():
    return None
  # A token is what a separator ends; that between the commas of ',,' is empty.
  digits = np.diff(separators, prepend=-1) - 1
  if digits.max() > _MOST_DIGITS:
    return None
  last = np.flatnonzero(is_newline)
  first = np.concatenate([[0], last[:-1] + 1])
  empty = np.flatnonzero(digits == 0)
  if kind == 'pretrain':
    middle = last + 1
    if len(empty):
      return None
  else:
    middle = empty
    if len(empty) != len(last) or not (
      (first < empty).all() and (empty < last).all()
    ):
      return None

  numbers = text.replace(b'\n', b',').replace(b',,', b',')
  values = np.fromstring(numbers, np.int64, sep=',')
  lengths = np.stack([middle - first, np.maximum(last - middle, 0)], axis=1)
  in_tail = np.repeat(np.tile([False, True], len(last)), lengths.reshape(-1))
  items = _without_zeros(Ragged.from_lengths(values[~in_tail], lengths[:, 0]))
  tails = Ragged.from_lengths(values[in_tail], lengths[:, 1])
  if not items.lengths.all():
    return None
  if kind == 'classification' and (tails.lengths > 1).any():
    return None
  return items, tails


def _without_zeros(rows: Ragged) -> Ragged:
  kept = np.flatnonzero(rows.values)
  offsets = np.searchsorted(kept, rows.offsets)
  return Ragged(rows.values[kept], offsets.astype(np.int64))


def _parse_lines(
  text: bytes, kind: Kind, path: pathlib.Path, first_line: int
) -> tuple[Ragged, Ragged]:
  """The same, line by line: slower, but knows which line is wrong and why."""
  items, tails = [], []
  for number, line in enumerate(text.split(b'\n')[:-1], first_line):
    try:
      row, tail = _parse_line(line, kind)
    except ValueError as error:
      raise DataError(f'{path}, line {number}: {error}') from None
    items.append(row)
    tails.append(tail)
  return Ragged.from_rows(items, np.int64), Ragged.from_rows(tails, np.int64)


def _parse_line(line: bytes, kind: Kind) -> tuple[list[int], list[int]]:
  head, *tails = line.split(b',,')
  if len(tails) > 1:
    raise ValueError("more than one ',,'")
  if kind == 'pretrain' and tails:
    raise ValueError("',,' in a file that has items only")
  if kind != 'pretrain' and not tails:
    raise ValueError("no ',,' between the items and what is to be predicted")
  items = [item for item in map(_integer, _cells(head)) if item]
  if not items:
    raise ValueError('no behaviours, or nothing but zeros')
  tail = [_integer(cell) for part in tails for cell in _cells(part)]
  if kind == 'classification' and len(tail) > 1:
    raise ValueError(f'{len(tail)} labels instead of one')
  if kind != 'pretrain' and not tail:
    raise ValueError("nothing after ',,': the label is missing")
  return items, tail


def _cells(text: bytes) -> list[bytes]:
  return text.split(b',') if text.strip() else []


def _integer(cell: bytes) -> int:
  digits = cell.strip()
  text = shown(digits.decode(errors='replace'))
  if not digits:
    raise ValueError('an empty id')
  if digits[:1] == b'-' and digits[1:].isdigit():
    raise ValueError(f'{text} is negative')
  if not digits.isdigit():
    raise ValueError(f'{text} is not an integer')
  if len(digits) > _MOST_DIGITS:
    raise ValueError(f'{text} has more than {_MOST_DIGITS} digits')
  return int(digits)


class Numbering:
  """Numbers raw ids from 1, in the order they first appear.

  Example:
    >>> numbering = Numbering()
    >>> numbering.add(np.array([70, 20, 70])), numbering.add(np.array([9, 20]))
    (array([1, 2, 1], dtype=int32), array([3, 2], dtype=int32))
    >>> numbering.find(np.array([9, 8])), numbering.names()
    (array([3, 0], dtype=int32), ['70', '20', '9'])
  """

  def __init__(self) -> None:
    # Sorted by id; a last entry that no id reaches spares the searches a case.
    self._ids = np.array([np.iinfo(np.int64).max])
    self._numbers = np.zeros(1, np.int32)

  def add(self, ids: np.ndarray) -> np.ndarray:
    """The numbers of these ids, int32; new ids get the next numbers."""
    distinct, which = _encode(ids)
    numbers = self._find(distinct)
    is_new = numbers == 0
    first = len(self._ids)
    numbers[is_new] = np.arange(first, first + is_new.sum())
    new = np.flatnonzero(is_new)
    new = new[np.argsort(distinct[new])]
    places = np.searchsorted(self._ids, distinct[new])
    self._ids = np.insert(self._ids, places, distinct[new])
    self._numbers = np.insert(self._numbers, places, numbers[new])
    return numbers[which]

  def find(self, ids: np.ndarray) -> np.ndarray:
    """The numbers of these ids, int32, 0 for those that have none."""
    distinct, which = _encode(ids)
    return self._find(distinct)[which]

  def _find(self, ids: np.ndarray) -> np.ndarray:
    # Searched in order, the memory that is read lies together.
    order = np.argsort(ids)
    places = np.searchsorted(self._ids, ids[order])
    known = self._ids[places] == ids[order]
    numbers = np.zeros(len(ids), np.int32)
    numbers[order] = np.where(known, self._numbers[places], 0)
    return numbers

  def names(self) -> list[str]:
    """The raw ids as text, in the order of their numbers."""
    return [str(name) for name in self.ids().tolist()]

  def ids(self) -> np.ndarray:
    """The raw ids, int64, in the order of their numbers."""
    return self._ids[np.argsort(self._numbers)][1:]


def _encode(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Distinct ids in the order they appear, and which of them each one is."""
  encoded = pa.array(ids).dictionary_encode()
  return encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
