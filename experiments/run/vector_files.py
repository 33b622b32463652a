"""Files of user vectors, written piece by piece."""

import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from adaptssr_jax.files import atomic_path
from experiments.flags.binder import SettingsError

# The raw ids of some users, and their vectors [users, dim].
Piece = tuple[list[str], np.ndarray]

# Users of a row group in Parquet: readers are slow if groups are small.
_GROUP = 65_536


def check_file(path: pathlib.Path) -> None:
  """Raises `SettingsError` where vectors cannot be written, or are already."""
  if path.suffix not in _WRITERS:
    raise SettingsError(
      f'--output={path}: give a file that ends in {" or ".join(_WRITERS)}'
    )
  if not path.parent.is_dir():
    raise SettingsError(
      f'--output={path}: there is no folder {path.parent}; make it first'
    )
  if path.exists():
    raise SettingsError(
      f'--output={path} exists: move it away, or choose another name'
    )


def write_vectors(
  path: pathlib.Path, pieces: Iterable[Piece], shape: tuple[int, int]
) -> None:
  """Writes a file such that a reader never finds half of it.

  Args:
    path: of the file; its suffix says in which format.
    pieces: what to write.
    shape: of all their vectors together, [users, dim].

  Raises:
    SettingsError: it cannot be written, or another process wrote one meanwhile.
  """
  own = f'.{os.getpid()}'
  try:
    with atomic_path(path, suffix=f'{own}.part') as aside:
      _WRITERS[path.suffix](aside, pieces, shape)
      if path.exists():
        other = aside.rename(path.with_suffix(own + path.suffix))
        raise SettingsError(
          f'--output={path} was written by another process meanwhile: the '
          f'vectors are in {other}'
        )
  except OSError as error:
    raise SettingsError(f'--output={path} was not written: {error}') from error


def _write_parquet(
  path: pathlib.Path, pieces: Iterable[Piece], shape: tuple[int, int]
) -> None:
  kind = pa.list_(pa.float32(), shape[1])
  schema = pa.schema({'user_id': pa.string(), 'vector': kind})
  # No two values are the same, which a dictionary would be made of.
  with pa.parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:
    for ids, vectors in _in_groups(pieces):
      lists = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), type=kind)
      writer.write_table(pa.table([ids, lists], schema=schema))


def _in_groups(pieces: Iterable[Piece]) -> Iterator[Piece]:
  ids, vectors = [], []
  for piece_ids, piece_vectors in pieces:
    ids += piece_ids
    vectors.append(piece_vectors)
    if len(ids) >= _GROUP:
      yield ids, np.concatenate(vectors)
      ids, vectors = [], []
  if ids:
    yield ids, np.concatenate(vectors)


def _write_npz(
  path: pathlib.Path, pieces: Iterable[Piece], shape: tuple[int, int]
) -> None:
  header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  ids = []
  with zipfile.ZipFile(path, 'w') as archive:
    with archive.open('vector.npy', 'w', force_zip64=True) as file:
      np.lib.format.write_array_header_1_0(file, header)
      for piece_ids, vectors in pieces:
        ids += piece_ids
        file.write(vectors.astype('<f4').tobytes())
    with archive.open('user_id.npy', 'w', force_zip64=True) as file:
      np.lib.format.write_array(file, np.array(ids), allow_pickle=False)


_WRITERS = {'.parquet': _write_parquet, '.npz': _write_npz}
