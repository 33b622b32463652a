"""Files of vectors by raw id, written in parts."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from experiments.flags.binder import SettingsError
from experiments.run.outputs import check_new, new_file

# The raw ids of some users or items, and their vectors [ids, dim]: a part of
# a file.
Piece = tuple[list[str], np.ndarray]

# Users per row group in Parquet; small groups make readers slow.
_GROUP = 65_536


def check_file(path: pathlib.Path, *, flag: str = 'output') -> None:
  """Raises `SettingsError` if vectors cannot be written to a new file."""
  if path.suffix not in _WRITERS:
    raise SettingsError(
      f'--{flag}={path}: give a file that ends in {" or ".join(_WRITERS)}'
    )
  check_new(path, flag=flag)


def write_vectors(
  path: pathlib.Path,
  pieces: Iterable[Piece],
  shape: tuple[int, int],
  *,
  name: str = 'user_id',
  flag: str = 'output',
) -> None:
  """Writes a new file of vectors.

  Args:
    pieces: the ids and vectors, which are written as they come.
    shape: the shape of all vectors together, [ids, dim].
    name: the name of the column of ids.
    flag: the flag that names the file.
  """
  with new_file(path, flag=flag) as temporary:
    _WRITERS[path.suffix](temporary, pieces, shape, name)


def has_vectors(path: pathlib.Path) -> bool:
  """Whether a file has the columns that `write_vectors` writes for users."""
  with _reading(path):
    if path.suffix == '.npz':
      with np.load(path, allow_pickle=False) as arrays:
        names = arrays.files
    else:
      names = pa.parquet.read_schema(path).names
  return {'user_id', 'vector'} <= set(names)


def read_vectors(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
  """The raw ids of users, and their vectors, float32 [users, dim]."""
  if not has_vectors(path):
    raise SettingsError(
      f'{path} has no columns user_id and vector: give a file that '
      'experiments.embed wrote by --output'
    )
  with _reading(path):
    if path.suffix == '.npz':
      with np.load(path, allow_pickle=False) as arrays:
        return arrays['user_id'].tolist(), arrays['vector']
    table = pa.parquet.read_table(path, columns=['user_id', 'vector'])
    chunks = [part.flatten().to_numpy() for part in table['vector'].chunks]
    vectors = np.concatenate(chunks).reshape(len(table), -1)
    return table['user_id'].to_pylist(), vectors


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise SettingsError(f'{path} cannot be read: {error}') from error


def _write_parquet(
  path: pathlib.Path,
  pieces: Iterable[Piece],
  shape: tuple[int, int],
  name: str,
) -> None:
  kind = pa.list_(pa.float32(), shape[1])
  schema = pa.schema({name: pa.string(), 'vector': kind})
  # A dictionary would only help if values were repeated.
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
  path: pathlib.Path,
  pieces: Iterable[Piece],
  shape: tuple[int, int],
  name: str,
) -> None:
  header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  ids = []
  with zipfile.ZipFile(path, 'w') as archive:
    with archive.open('vector.npy', 'w', force_zip64=True) as file:
      np.lib.format.write_array_header_1_0(file, header)
      for piece_ids, vectors in pieces:
        ids += piece_ids
        file.write(vectors.astype('<f4').tobytes())
    with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
      np.lib.format.write_array(file, np.array(ids), allow_pickle=False)


_WRITERS = {'.parquet': _write_parquet, '.npz': _write_npz}
