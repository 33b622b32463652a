"""The columns of a prepared data set in flat files, opened memory-mapped.

A column is a file of its values, and beside it `.lengths` of the rows if they
differ in length. There is no header: a file that was cut is known by its size.
"""

from __future__ import annotations

import pathlib

import numpy as np

from adaptssr_jax.data.builder import UserBuilder
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import DataError, Kind

# How many examples are decoded before they are appended to the columns.
_BLOCK = 8192
_OF_RANKINGS = ('targets', 'positives', 'places')


def write_columns(builder: UserBuilder, folder: pathlib.Path) -> None:
  """Reads the ArrayRecord files of a builder into columns.

  Args:
    folder: to be made; gets a folder of columns for each split.
  """
  folder.mkdir()
  for split in builder.info.splits:
    (folder / split).mkdir()
    source = builder.as_data_source(split=split)
    for start in range(0, len(source), _BLOCK):
      block = range(start, min(start + _BLOCK, len(source)))
      # Ten times as fast as one example after the other.
      examples = source.__getitems__(list(block))
      _append(examples, folder / split)


def open_columns(
  folder: pathlib.Path, kind: Kind
) -> dict[str, Ragged | np.ndarray | None]:
  """The columns of one split by name; None for those its kind does not have.

  Raises:
    DataError: a file is missing, or is shorter or longer than it was written.
  """
  columns = {
    'user_id': _open_ragged(folder / 'user_id', np.uint8),
    'items': _open_ragged(folder / 'items', np.int32),
    'label': _open_flat(folder / 'label', np.int32),
    'user_number': _open_flat(folder / 'user_number', np.int32),
  }
  for name in _OF_RANKINGS:
    columns[name] = _open_ragged(folder / name, np.int32)
  rows = {len(column) for column in columns.values() if column is not None}
  needed = {'user_id', 'items'}
  needed |= {'label'} if kind in ('classification', 'conversion') else set()
  needed |= {'user_number', *_OF_RANKINGS} if kind == 'ranking' else set()
  if any(columns[name] is None for name in needed) or len(rows) > 1:
    raise _damaged(folder)
  return columns


def _append(examples: list[dict], folder: pathlib.Path) -> None:
  """Appends examples to the columns of a split: raw arrays without header."""
  for name in examples[0]:
    cells = [example[name] for example in examples]
    if name == 'user_id':
      cells = [np.frombuffer(cell, np.uint8) for cell in cells]
    if name not in ('label', 'user_number'):
      lengths = np.array([len(cell) for cell in cells], np.int64)
      _append_to(folder / f'{name}.lengths', lengths)
      cells = np.concatenate(cells)
    # TFDS gives a number as a Python int, which alone would become an int64.
    dtype = np.uint8 if name == 'user_id' else np.int32
    _append_to(folder / name, np.asarray(cells, dtype))


def _append_to(path: pathlib.Path, values: np.ndarray) -> None:
  with path.open('ab') as file:
    values.tofile(file)


def _open_ragged(path: pathlib.Path, dtype: type) -> Ragged | None:
  values = _open_flat(path, dtype)
  if values is None:
    return None
  try:
    rows = Ragged.from_lengths(values, np.fromfile(f'{path}.lengths', np.int64))
  except FileNotFoundError:
    raise _damaged(path.parent) from None
  if rows.offsets[-1] != len(values):
    raise _damaged(path.parent)
  return rows


def _open_flat(path: pathlib.Path, dtype: type) -> np.ndarray | None:
  if not path.exists():
    return None
  try:
    return np.memmap(path, dtype, mode='r')
  except ValueError:  # Empty, or not a whole number of values.
    raise _damaged(path.parent) from None


def _damaged(folder: pathlib.Path) -> DataError:
  return DataError(
    f'the prepared data set in {folder} is damaged: delete '
    f'{folder.parent.parent}, and it will be prepared again'
  )
