"""The users whose vectors are nearest to that of a user."""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tqdm

from adaptssr_jax.ops.negatives import Negatives, most_similar
from adaptssr_jax.ops.similarity import unit_length
from experiments.flags.binder import SettingsError
from experiments.run.vector_files import Piece, new_file

# Users whose neighbours are searched at once, and among how many.
_QUERIES = 1024
_BLOCK = 16_384


def write_neighbours(
  path: pathlib.Path, pieces: Sequence[Piece], *, count: int
) -> None:
  """Writes the nearest users of every user, by the cosine of their vectors.

  Args:
    path: of the file, .parquet or .npz.
    pieces: the users and their vectors; of a user with several rows the first
      counts.
    count: how many neighbours of each.

  Raises:
    SettingsError: there are not as many users, or the file cannot be written.
  """
  ids = np.array([user for users, _ in pieces for user in users])
  _, first = np.unique(ids, return_index=True)
  first.sort()
  ids = ids[first]
  if count >= len(ids):
    raise SettingsError(
      f'--neighbours={count} is too many: there are {len(ids):,} users, of '
      f'whom each has {len(ids) - 1:,} others'
    )
  vectors = np.concatenate([vectors for _, vectors in pieces])[first]
  similarities, places = nearest_users(vectors, count=count)
  with new_file(path, flag='neighbours_output') as aside:
    _WRITERS[path.suffix](aside, ids, ids[places], similarities)


def nearest_users(
  vectors: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest other users of every user, exactly, the nearest first.

  Args:
    vectors: float32 [users, dim]; a vector of zeros has the cosine 0 with all.
    count: how many of each, fewer than there are users.

  Returns:
    Their cosines, float32 [users, count], and which users they are, int32
    [users, count].
  """
  unit = unit_length(jnp.asarray(vectors))
  everyone = Negatives(unit, jnp.arange(len(unit)) + 1)
  block_size = max(min(_BLOCK, len(unit)), count)
  search = jax.jit(
    functools.partial(most_similar, count=count, block_size=block_size)
  )
  found = []
  for begin in tqdm.tqdm(range(0, len(unit), _QUERIES), unit=' batches'):
    part = slice(begin, begin + _QUERIES)
    batch = search(unit[part], everyone.ids[part], everyone)
    found.append(jax.tree.map(np.asarray, batch))
  similarities, places = map(np.concatenate, zip(*found, strict=True))
  return similarities, places


def _write_parquet(
  path: pathlib.Path,
  ids: np.ndarray,
  neighbours: np.ndarray,
  similarities: np.ndarray,
) -> None:
  lists = functools.partial(
    pa.FixedSizeListArray.from_arrays, list_size=neighbours.shape[1]
  )
  table = {
    'user_id': pa.array(ids),
    'neighbour_id': lists(pa.array(neighbours.reshape(-1))),
    'similarity': lists(pa.array(similarities.reshape(-1))),
  }
  pa.parquet.write_table(pa.table(table), path)


def _write_npz(
  path: pathlib.Path,
  ids: np.ndarray,
  neighbours: np.ndarray,
  similarities: np.ndarray,
) -> None:
  with path.open('wb') as file:
    np.savez(
      file, user_id=ids, neighbour_id=neighbours, similarity=similarities
    )


_WRITERS = {'.parquet': _write_parquet, '.npz': _write_npz}
