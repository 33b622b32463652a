"""Rows of a data set in files: what the machines of a cluster hand over.

A piece is a file of rows and of their numbers among all rows. The places of all
numbers, which split and where in it, are one array, drawn on one machine as
they are without a cluster, so that the data set is the same.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import Rows, Vocabulary

Example = tuple[int, dict[str, Any]]


class Pieces(NamedTuple):
  """A data set that is yet to be written.

  Args:
    paths: of the files of rows.
    parts: the numbers of the rows of each split, in its order.
    vocabulary: of all splits.
  """

  paths: Sequence[str]
  parts: Mapping[str, np.ndarray]
  vocabulary: Vocabulary


def examples_of(
  rows: Rows, first: int = 0, end: int | None = None
) -> Iterator[Example]:
  """Some rows as examples, with their places among all of them as the keys."""
  columns = {
    name: column
    for name, column in rows._asdict().items()
    if column is not None
  }
  for row in range(len(rows.items))[first:end]:
    yield row, {name: column[row] for name, column in columns.items()}


def save_rows(path: str | os.PathLike, rows: Rows, numbers: np.ndarray) -> None:
  """Writes a piece: rows, and their numbers among all rows.

  Of users whose positives are not dealt out yet, `numbers` are those of the
  positives.
  """
  ids = [np.frombuffer(user.encode(), np.uint8) for user in rows.user_id]
  rows = rows._replace(user_id=Ragged.from_rows(ids, np.uint8))
  flat = {'numbers': numbers}
  for name, column in rows._asdict().items():
    if isinstance(column, Ragged):
      flat[name], flat[f'{name}.lengths'] = column.values, column.lengths
    elif column is not None:
      flat[name] = column
  save(path, **flat)


def load_rows(path: str | os.PathLike) -> tuple[Rows, np.ndarray]:
  """Reads what `save_rows` wrote."""
  flat = load(path)
  columns = {name: flat[name] for name in Rows._fields if name in flat}
  for name in columns:
    if f'{name}.lengths' in flat:
      columns[name] = Ragged.from_lengths(flat[name], flat[f'{name}.lengths'])
  ids = columns['user_id']
  columns['user_id'] = [ids[row].tobytes().decode() for row in range(len(ids))]
  return Rows(**columns), flat['numbers']


def save(path: str | os.PathLike, **arrays: np.ndarray) -> None:
  """Writes arrays to a file; those of objects would have to be pickled."""
  for name, array in arrays.items():
    if array.dtype.hasobject:
      raise TypeError(f'{name} holds objects')
  # Not `allow_pickle=False`, which an older numpy takes for one more array.
  with appearing(path) as aside, aside.open('wb') as file:
    np.savez(file, **arrays)


@contextlib.contextmanager
def appearing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A file to write, which appears whole: two machines may do the same work."""
  handle, aside = tempfile.mkstemp(dir=pathlib.Path(path).parent)
  os.close(handle)
  yield pathlib.Path(aside)
  os.replace(aside, path)


def load(path: str | os.PathLike, *names: str) -> dict[str, np.ndarray]:
  """Reads these arrays of a file, or all."""
  with np.load(path, allow_pickle=False) as arrays:
    return {name: arrays[name] for name in names or arrays.files}


def save_places(
  path: str | os.PathLike, parts: Mapping[str, np.ndarray]
) -> None:
  """Writes where each number goes: split, and place in the split."""
  places = np.full(
    (1 + max(int(part.max(initial=-1)) for part in parts.values()), 2),
    -1,
    np.int64,
  )
  for at, part in enumerate(parts.values()):
    places[part] = np.stack([np.full(len(part), at), np.arange(len(part))], 1)
  np.save(path, places, allow_pickle=False)


def dealt_out(path: str, *, places: str, split: int) -> Iterator[Example]:
  """The examples of one split in a piece, keyed by their place in the split."""
  rows, numbers = load_rows(path)
  # Mapped: the places of a piece are few of those of all.
  own = np.load(places, mmap_mode='r', allow_pickle=False)[numbers]
  inside = np.flatnonzero(own[:, 0] == split)
  keys = own[inside, 1]
  if rows.targets is None or rows.positives is not None:
    rows = rows.take(inside)
  else:
    rows = rows.with_positives(inside[np.argsort(keys)])
    in_split = np.sort(keys).astype(np.int32)[rows.places.values]
    rows = rows._replace(places=Ragged(in_split, rows.places.offsets))
    keys = in_split[rows.places.offsets[:-1]]
  for row, example in examples_of(rows):
    yield int(keys[row]), example
