"""Columns of times: numbers, or ISO-8601 timestamps, never both."""

from __future__ import annotations

import datetime
import re
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.rows import shown

TimeKind = Literal['numbers', 'timestamps']
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LIMIT = 2**63 - 1
# A float holds every integer up to here.
EXACT = 2**53
_INTEGER = re.compile('[+-]?[0-9]+')
# What Python takes besides, such as 1_0, pyarrow does not; nor 0x10 as a float.
_NUMBER = re.compile(
  r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf(inity)?)',
  re.IGNORECASE,
)
_NANOSECONDS = {'s': 10**9, 'ms': 10**6, 'us': 10**3, 'ns': 1}


class BadTimeError(ValueError):
  """The time in `row`, counted from 0, does not parse."""

  def __init__(self, row: int, reason: str) -> None:
    super().__init__(reason)
    self.row = row


class Times(NamedTuple):
  """What orders the rows: int64 or float64 [rows], timestamps in nanoseconds.

  Numbers are taken as they are. Timestamps without a time zone are UTC.
  """

  kind: TimeKind
  values: np.ndarray


def parse_times(cells: pa.ChunkedArray) -> Times:
  """Makes times comparable.

  Args:
    cells: integers, floats, dates, timestamps, or any of these as text; no
      nulls.

  Returns:
    Their kind and values.

  Raises:
    BadTimeError: a time is none of these, is not finite, is not of the kind of
      the first one, is a timestamp outside the years 1678 to 2261, or is an
      integer that would be rounded.
  """
  kind = cells.type
  if pa.types.is_large_string(kind):
    return _parse_text(cells)
  if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
    return Times('timestamps', _nanoseconds(cells))
  if pa.types.is_integer(kind):
    return Times('numbers', _integers(cells))
  if pa.types.is_floating(kind):
    return Times('numbers', _finite(cells.cast(pa.float64()).to_numpy()))
  raise BadTimeError(0, f'a column of {kind} holds no times')


def first_inexact(times: Times) -> int | None:
  """The first row with an integer that a float does not hold, if any."""
  values = times.values
  if times.kind != 'numbers' or values.dtype != np.int64:
    return None
  large = np.flatnonzero((values > EXACT) | (values < -EXACT))
  return int(large[0]) if len(large) else None


def inexact(time: object) -> str:
  """What is wrong with such an integer among floats, and what to do."""
  return (
    f'time {shown(time)} is an integer that would be rounded, because other '
    'times are no integers of 64 bits; write all of them as such, or as '
    'timestamps'
  )


def _integers(cells: pa.ChunkedArray) -> np.ndarray:
  try:
    return cells.cast(pa.int64()).to_numpy()
  except pa.ArrowInvalid:
    large = pc.greater(cells, pa.scalar(_LIMIT, pa.uint64()))
    row = pc.index(large, True).as_py()
    raise BadTimeError(
      row,
      f'time {cells[row]} has more than 63 bits; write all times smaller, or '
      'as timestamps',
    ) from None


def _nanoseconds(cells: pa.ChunkedArray) -> np.ndarray:
  if pa.types.is_date(cells.type):
    cells = cells.cast(pa.timestamp('s'))
  factor = _NANOSECONDS[cells.type.unit]
  values = cells.cast(pa.int64()).to_numpy()
  limit = _LIMIT // factor
  bad = np.flatnonzero((values > limit) | (values < -limit))
  if len(bad):
    # Not as a date: it may be outside what Python can show.
    raise BadTimeError(
      int(bad[0]),
      f'a time {values[bad[0]]} {cells.type.unit} from 1970 is outside the '
      'years 1678 to 2261',
    )
  return values * factor


def _finite(values: np.ndarray) -> np.ndarray:
  bad = np.flatnonzero(~np.isfinite(values))
  if len(bad):
    raise BadTimeError(int(bad[0]), f'time {values[bad[0]]} is not finite')
  return values


def _parse_text(cells: pa.ChunkedArray) -> Times:
  # pyarrow takes 0x10 for an integer.
  if pc.any(pc.match_substring_regex(cells, '[xX]')).as_py():
    return _parse_one_by_one(cells.to_pylist())
  for target in (
    pa.int64(),
    pa.float64(),
    pa.timestamp('ns'),
    pa.timestamp('ns', 'UTC'),
  ):
    try:
      times = parse_times(cells.cast(target))
    except pa.ArrowInvalid:
      continue
    if target == pa.float64():
      _check_exact(cells, times.values)
    return times
  return _parse_one_by_one(cells.to_pylist())


def _parse_one_by_one(texts: list[str]) -> Times:
  """The same for what pyarrow leaves, such as a mix of time zones."""
  numbers = _number(texts[0]) is not None
  if not numbers and _timestamp(texts[0]) is None:
    raise BadTimeError(
      0, f'time {shown(texts[0])} is neither a number nor an ISO-8601 timestamp'
    )
  values = []
  for row, text in enumerate(texts):
    value = _number(text) if numbers else _timestamp(text)
    if value is None:
      kind = 'a number' if numbers else 'an ISO-8601 timestamp'
      raise BadTimeError(
        row, f'time {shown(text)} is not {kind}, as that of the first row is'
      )
    if not numbers and abs(value) > _LIMIT:
      raise BadTimeError(row, f'time {shown(text)} is not in 1678 to 2261')
    values.append(value)
  if numbers:
    times = _finite(np.array(values, np.float64))
    _check_exact(pa.chunked_array([pa.array(texts, pa.large_string())]), times)
    return Times('numbers', times)
  return Times('timestamps', np.array(values, np.int64))


def _check_exact(cells: pa.ChunkedArray, values: np.ndarray) -> None:
  """Refuses text of an integer that its float may have rounded."""
  large = np.flatnonzero(np.abs(values) >= EXACT)
  for row, text in zip(large, cells.take(large).to_pylist(), strict=True):
    # Not as an integer, which Python makes of 4300 digits at most.
    is_integer = _INTEGER.fullmatch(text.strip())
    if is_integer and text.strip().lstrip('+-0') != str(EXACT):
      raise BadTimeError(int(row), inexact(text))


def _number(text: str) -> float | None:
  return float(text) if _NUMBER.fullmatch(text.strip()) else None


def _timestamp(text: str) -> int | None:
  try:
    moment = datetime.datetime.fromisoformat(text)
  except ValueError:
    return None
  if moment.tzinfo is None:
    moment = moment.replace(tzinfo=datetime.UTC)
  age = moment - _EPOCH
  return age // datetime.timedelta(microseconds=1) * 1000
