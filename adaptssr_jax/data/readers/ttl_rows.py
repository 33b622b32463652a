"""The rows that the lines of the TTL files become."""

from __future__ import annotations

import hashlib
import pathlib
import random
from collections.abc import Mapping

import numpy as np

from adaptssr_jax.data.ragged import Ragged
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


def digest(behaviours: np.ndarray) -> bytes:
  """Sixteen bytes that only the same behaviours have."""
  # A million sequences as dictionary keys would take a gigabyte.
  return hashlib.blake2b(behaviours, digest_size=16).digest()


def check_known(
  path: pathlib.Path, first_line: int, raw: Ragged, numbers: Ragged
) -> None:
  """Raises `DataError` for the first line with an item that has no number."""
  unknown = np.flatnonzero(numbers.values == 0)
  if len(unknown):
    row = np.searchsorted(numbers.offsets, unknown[0], side='right') - 1
    raise DataError(
      f'{path}, line {first_line + row}: item {raw.values[unknown[0]]} is not '
      f'in {PRETRAIN_FILE}; take all files from the same archive'
    )


def user_ids(
  path: pathlib.Path, first_line: int, items: Ragged, lines: dict[bytes, str]
) -> list[str]:
  """The user of each row, by digest; `DataError` for one that is nobody's."""
  found = [lines.get(digest(items[row])) for row in range(len(items))]
  if None in found:
    raise DataError(
      f'{path}, line {first_line + found.index(None)}: no line of '
      f'{PRETRAIN_FILE} has these behaviours; take all files from the same '
      'archive'
    )
  return found


def with_tails(rows: Rows, tails: Ragged, kind: str) -> Rows:
  """Adds what a task predicts of each line: one label, or the targets."""
  if kind == 'classification':
    return rows._replace(label=tails.values)
  return rows._replace(targets=tails)
