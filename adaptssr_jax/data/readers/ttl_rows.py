"""The rows that the lines of the TTL files become."""

from __future__ import annotations

import hashlib
import pathlib
import random
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.ttl_lines import Lines
from adaptssr_jax.data.rows import DataError, Rows

PRETRAIN_FILE = 'original_desen_pretrain.csv'


def reference_split(
  num_rows: int, ends: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
  """The rows of each split, in the order the reference implementation has them.

  Args:
    num_rows: how many rows are dealt out.
    ends: the share of the rows at which each split ends.
    seed: of Python's own generator, which fixes the order.

  Returns:
    Row numbers of each split, int64.

  Example:
    >>> reference_split(5, {'train': 0.6, 'validation': 1.0}, seed=1)
    {'train': array([2, 3, 4]), 'validation': array([0, 1])}
  """
  order = list(range(num_rows))
  random.Random(seed).shuffle(order)
  cuts = [int(num_rows * end) for end in ends.values()]
  parts = np.split(np.array(order, np.int64), cuts[:-1])
  return dict(zip(ends, parts, strict=True))


def with_digests(lines: Lines) -> pa.RecordBatch:
  """The number of each line, and a digest of its behaviours."""
  # The sequences themselves as keys would take as much memory as the file.
  digests = [
    hashlib.blake2b(lines.items[row], digest_size=16).digest()
    for row in range(len(lines.items))
  ]
  columns = [pa.array(lines.number), pa.array(digests, pa.binary(16))]
  return pa.record_batch(columns, ['line', 'digest'])


def names_of(numbers: pa.Array | pa.ChunkedArray) -> list[str]:
  """Numbers as text."""
  return [str(name) for name in numbers.to_pylist()]


def check_known(
  path: pathlib.Path,
  line: np.ndarray,
  items: Ragged,
  ids: pa.Array,
  unknown: np.ndarray,
) -> None:
  """Raises `DataError` for the first item that pre-training does not have.

  Args:
    line: the number of the line of each row.
    items: of each row, numbers from 1.
    ids: the raw ids of the numbers.
    unknown: which of these ids pre-training does not have, bool [ids].
  """
  if unknown.any():
    at = np.argmax(unknown[items.values - 1])
    row = np.searchsorted(items.offsets, at, side='right') - 1
    raise DataError(
      f'{path}, line {line[row]}: item {ids[items.values[at] - 1]} is not in '
      f'{PRETRAIN_FILE}; take all files from the same archive'
    )


def no_such_user(path: pathlib.Path, line: int | np.integer) -> DataError:
  """What is wrong with a line whose behaviours are those of nobody."""
  return DataError(
    f'{path}, line {line}: no line of {PRETRAIN_FILE} has these behaviours; '
    'take all files from the same archive'
  )


def dropped_note(path: str | pathlib.Path, count: int, first: int) -> str:
  """The note about lines that are dropped."""
  return (
    f'{path}: lines without behaviours are dropped, {count:,} in all; the '
    f'first is line {first}'
  )


def with_tails(rows: Rows, tails: Ragged, kind: str) -> Rows:
  """Adds what a task predicts of each line: one label, or the targets."""
  if kind == 'classification':
    return rows._replace(label=tails.values)
  return rows._replace(targets=tails)
