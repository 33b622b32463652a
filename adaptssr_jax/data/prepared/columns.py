"""The columns of a prepared data set, in flat files that are memory-mapped.

A column is a file of its values; if rows differ in length, a second file with
the suffix `.lengths` has these. Files have no header: a truncated file is
detected by its size.
"""

from __future__ import annotations

import pathlib

import numpy as np

from adaptssr_jax.data.builder import UserBuilder
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import COLUMNS, NUMBERS, DataError, Kind

# Examples that are decoded before they are appended to the columns.
_BLOCK = 8192


def write_columns(builder: UserBuilder, folder: pathlib.Path) -> None:
  """Converts the ArrayRecord files of a builder to columns.

  Args:
    folder: is created, with a folder of columns for each split.
  """
  folder.mkdir()
  for split in builder.info.splits:
    (folder / split).mkdir()
    source = builder.as_data_source(split=split)
    for start in range(0, len(source), _BLOCK):
      block = range(start, min(start + _BLOCK, len(source)))
      # Ten times as fast as reading one example at a time.
      examples = source.__getitems__(list(block))
      _append(examples, folder / split)


def open_columns(
  folder: pathlib.Path, kind: Kind
) -> dict[str, Ragged | np.ndarray]:
  """Opens the columns of one split.

  Args:
    folder: the folder of the split.
    kind: the kind of the task, which determines the columns.

  Returns:
    The columns by name.

  Raises:
    DataError: a file is missing or has the wrong size.
  """
  names = ('user_id', 'items', *COLUMNS[kind])
  try:
    columns = {name: _open(folder / name) for name in names}
    if len({len(column) for column in columns.values()}) > 1:
      raise ValueError('columns of different lengths')
  # A file is missing, empty, or of the wrong size.
  except (FileNotFoundError, ValueError):
    raise DataError(
      f'the prepared data set in {folder} is damaged: delete '
      f'{folder.parent.parent}, and it will be prepared again'
    ) from None
  return columns


def _open(path: pathlib.Path) -> Ragged | np.ndarray:
  values = np.memmap(path, _dtype(path.name), mode='r')
  if path.name in NUMBERS:
    return values
  rows = Ragged.from_lengths(values, np.fromfile(f'{path}.lengths', np.int64))
  if rows.offsets[-1] != len(values):
    raise ValueError('lengths that do not match the values')
  return rows


def _dtype(name: str) -> type:
  return np.uint8 if name == 'user_id' else np.int32


def _append(examples: list[dict], folder: pathlib.Path) -> None:
  """Appends examples to the columns of a split."""
  for name in examples[0]:
    cells = [example[name] for example in examples]
    if name == 'user_id':
      cells = [np.frombuffer(cell, np.uint8) for cell in cells]
    if name not in NUMBERS:
      lengths = np.array([len(cell) for cell in cells], np.int64)
      _append_to(folder / f'{name}.lengths', lengths)
      cells = np.concatenate(cells)
    # TFDS returns a number as a Python int, which would become an int64.
    _append_to(folder / name, np.asarray(cells, _dtype(name)))


def _append_to(path: pathlib.Path, values: np.ndarray) -> None:
  with path.open('ab') as file:
    values.tofile(file)
