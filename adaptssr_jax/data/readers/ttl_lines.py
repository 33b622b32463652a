"""Parses the lines of the TTL files into rows."""

from __future__ import annotations

import hashlib
import pathlib
import random
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.lines import Span, text_blocks
from adaptssr_jax.data.rows import DataError, Kind, Rows, quote_cell

PRETRAIN_FILE = 'original_desen_pretrain.csv'
# A longer number may not fit int64.
_MOST_DIGITS = 18
_NUMBER = f'[0-9]{{1,{_MOST_DIGITS}}}'
_NUMBERS = f'{_NUMBER}(,{_NUMBER})*'
_LINE = {
  'pretrain': f'^{_NUMBERS}$',
  'classification': f'^{_NUMBERS},,{_NUMBER}$',
  'ranking': f'^{_NUMBERS},,{_NUMBERS}$',
}
# Matches the longest valid beginning of a line.
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
# Replacements for lines with blanks around a number or without items.
_UNUSUAL = (
  ('(^|,)[ \t]+([0-9])', r'\1\2'),
  ('([0-9])[ \t]+(,|$)', r'\1\2'),
  ('^[ \t]*(,,|$)', r'0\1'),
)


class Lines(NamedTuple):
  """The lines of a span of a file.

  Args:
    span: the span.
    kind: the kind of its lines.
    number: the line number of each line with behaviours, int64 [rows].
    items: the items of each line without zeros, as indices into `item_ids`.
    item_ids: raw item ids, in the order in which they first appear.
    tails: the label or the targets of each line, which follow ',,', as indices
      into `tail_ids`.
    tail_ids: raw ids of labels or targets, in the order in which they first
      appear.
    dropped: the line numbers of the lines without behaviours, int64.
  """

  span: Span
  kind: Kind
  number: np.ndarray
  items: Ragged
  item_ids: pa.Int64Array
  tails: Ragged
  tail_ids: pa.Int64Array
  dropped: np.ndarray

  @property
  def num_rows(self) -> int:
    """The number of labelled rows; for pre-training, that of lines."""
    return len(self.number if self.kind == 'pretrain' else self.tails.values)


def read_lines(span: Span, kind: Kind) -> Lines:
  """Parses a file, or a span of it.

  Args:
    kind: `pretrain` for lines without ',,'; `classification` for lines with one
      number after ',,'; `ranking` for lines with one or more.

  Raises:
    DataError: a line is malformed; the message names the file, the line number
      and the reason.
  """
  items, tails, numbers, dropped = [], [], [], []
  for block in text_blocks(span):
    of_block = _parse(block.to_arrow(), kind, span.path, block.line)
    number = block.line + np.arange(len(of_block[0]))
    kept = of_block[0].lengths > 0
    numbers.append(number[kept])
    dropped.append(number[~kept])
    for rows, parts in zip(of_block, (items, tails), strict=True):
      parts.append(rows if kept.all() else rows.take(np.flatnonzero(kept)))
  nothing = [np.zeros(0, np.int64)]
  return Lines(
    span,
    kind,
    np.concatenate(numbers or nothing),
    *_encoded(items),
    *_encoded(tails),
    np.concatenate(dropped or nothing),
  )


def _encoded(parts: list[Ragged]) -> tuple[Ragged, pa.Int64Array]:
  """Joins rows of ids, as indices into the distinct ids; empties `parts`."""
  values = pa.chunked_array([part.values for part in parts], pa.int64())
  lengths = [np.zeros(0, np.int64), *(part.lengths for part in parts)]
  # The raw ids are as large as the file: free them before the next copy.
  parts.clear()
  values = values.dictionary_encode()
  values = values.combine_chunks()
  pa.default_memory_pool().release_unused()
  rows = Ragged.from_lengths(values.indices.to_numpy(), np.concatenate(lengths))
  return rows, values.dictionary


def _parse(
  texts: pa.LargeBinaryArray, kind: Kind, path: pathlib.Path, first: int
) -> tuple[Ragged, Ragged]:
  """The raw ids before (without zeros) and after ',,' of each line, int64."""
  is_right = pc.match_substring_regex(texts, _LINE[kind])
  if not pc.all(is_right).as_py():
    tidy = texts
    for pattern, replacement in _UNUSUAL:
      tidy = pc.replace_substring_regex(tidy, pattern, replacement)
    wrong = pc.index(pc.match_substring_regex(tidy, _LINE[kind]), False).as_py()
    if wrong >= 0:
      reason = _reason(tidy[wrong].as_py(), kind)
      raise DataError(f'{path}, line {first + wrong}: {reason}')
    texts = tidy
  tails = Ragged(np.zeros(0, np.int64), np.zeros(len(texts) + 1, np.int64))
  if kind != 'pretrain':
    halves = pc.split_pattern(texts, ',,')
    texts = pc.list_element(halves, 0)
    tails = _integers(pc.list_element(halves, 1))
  items = _integers(texts)
  kept = np.flatnonzero(items.values)
  items = Ragged(items.values[kept], np.searchsorted(kept, items.offsets))
  return items, tails


def _integers(texts: pa.LargeBinaryArray) -> Ragged:
  cells = pc.split_pattern(texts, ',')
  values = cells.values.cast(pa.int64()).to_numpy()
  return Ragged(values, cells.offsets.to_numpy().astype(np.int64))


def _reason(line: bytes, kind: Kind) -> str:
  """Describes the error in a line."""
  right = re.match(_BEGINNING[kind].encode(), line).end()
  rest = line[right:].decode(errors='replace')
  wrong = f'{quote_cell(rest)} is wrong there' if rest else 'it ends too early'
  return (
    f'{wrong}; a line is like {_EXAMPLE[kind]}, and no number has more than '
    f'{_MOST_DIGITS} digits'
  )


def notes_of(dropped: Iterable[tuple[str, np.ndarray]]) -> list[str]:
  """Notes on dropped lines, from pairs of a file and its line numbers."""
  found = {}
  for path, numbers in dropped:
    found.setdefault(path, []).extend(numbers.tolist())
  return [
    f'{path}: lines without behaviours are dropped, {len(numbers):,} in all; '
    f'the first is line {min(numbers)}'
    # The pre-training file comes first.
    for path, numbers in sorted(
      found.items(), key=lambda item: not item[0].endswith(PRETRAIN_FILE)
    )
    if numbers
  ]


def items_of(lines: Lines, item_ids: pa.Int64Array) -> Ragged:
  """The item numbers of each line: positions in `item_ids`, from 1.

  Raises:
    DataError: an item is not in `item_ids`.
  """
  index = pc.index_in(lines.item_ids, value_set=item_ids)
  number = index.fill_null(-1).to_numpy() + 1
  items = Ragged(number[lines.items.values], lines.items.offsets)
  if index.null_count:
    at = np.argmin(items.values)
    row = np.searchsorted(items.offsets, at, side='right') - 1
    item = lines.item_ids[lines.items.values[at]]
    raise DataError(
      f'{lines.span.path}, line {lines.number[row]}: item {item} is not '
      f'in {PRETRAIN_FILE}; take all files from the same archive'
    )
  return items


def users_of(lines: Lines, item_ids: pa.Int64Array) -> pa.Table:
  """The `id` of each line (a digest of its behaviours) and its `number`."""
  items = items_of(lines, item_ids)
  return pa.table({'id': _digests(items), 'number': lines.number})


def last_lines(users: Iterable[pa.Table]) -> pa.Table:
  """The last line number of each user, from tables of `users_of`."""
  empty = pa.table(
    {'id': pa.array([], pa.binary(16)), 'number': pa.array([], pa.int64())}
  )
  lines = pa.concat_tables([empty, *users]).group_by('id')
  return lines.aggregate([('number', 'max')]).rename_columns(['id', 'number'])


def _digests(items: Ragged) -> pa.Array:
  # The sequences as keys would take as much memory as the file.
  digests = [
    hashlib.blake2b(items[row], digest_size=16).digest()
    for row in range(len(items))
  ]
  return pa.array(digests, pa.binary(16))


def rows_of(
  lines: Lines,
  item_ids: pa.Int64Array,
  users: pa.Table | None,
  tail_ids: pa.Int64Array | None,
) -> Rows:
  """Converts lines to rows, with a label or targets unless pre-training.

  Args:
    item_ids: raw ids of all items, in the order of their numbers.
    users: the result of `last_lines` for the pre-training file; None if `lines`
      are from that file.
    tail_ids: raw ids of all labels or targets, in the order of their numbers;
      not used for pre-training.

  Raises:
    DataError: an item or a user is not in the pre-training file.
  """
  items, number = items_of(lines, item_ids), lines.number
  if users is not None:
    index = pc.index_in(_digests(items), value_set=users['id'])
    missing = pc.index(index.is_valid(), False).as_py()
    if missing >= 0:
      raise DataError(
        f'{lines.span.path}, line {number[missing]}: no line of '
        f'{PRETRAIN_FILE} has these behaviours; take all files from the same '
        'archive'
      )
    number = users['number'].take(index).to_numpy()
  rows = Rows(list(map(str, number.tolist())), items)
  if lines.kind == 'pretrain':
    return rows
  tails = pc.index_in(lines.tail_ids, value_set=tail_ids).to_numpy()
  tails = Ragged(tails[lines.tails.values], lines.tails.offsets)
  if lines.kind == 'classification':
    return rows._replace(label=tails.values)
  user_number = (lines.number - 1).astype(np.int32)
  return rows._replace(targets=tails, user_number=user_number)


def reference_split(
  num_rows: int, ends: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
  """The row numbers of each split, int64, in the reference code's order.

  Args:
    num_rows: the number of rows.
    ends: {split: share of the rows at which it ends}.
    seed: of Python's `random` generator, which draws the order.

  Example:
    >>> reference_split(5, {'train': 0.6, 'validation': 1.0}, seed=1)
    {'train': array([2, 3, 4]), 'validation': array([0, 1])}
  """
  order = list(range(num_rows))
  random.Random(seed).shuffle(order)
  cuts = [int(num_rows * end) for end in ends.values()]
  parts = np.split(np.array(order, np.int64), cuts[:-1])
  return dict(zip(ends, parts, strict=True))
