"""The users whose vectors are nearest to that of a user."""

import functools
import itertools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from adaptssr_jax.data import UserArrays
from adaptssr_jax.ops.negatives import Negatives, most_similar
from adaptssr_jax.ops.similarity import unit_length
from experiments.embedding.users import progress
from experiments.flags.binder import SettingsError
from experiments.run.outputs import new_file
from experiments.run.vector_files import Piece

# Users whose neighbours are searched at a time, and similarities in memory at a
# time.
_QUERIES = 1024
_SIMILARITIES = 2**23
# Users whose neighbours are written at a time.
_GROUP = 8192


def check_neighbours(splits: Sequence[UserArrays], count: int) -> None:
  """Raises `SettingsError` if a user has fewer than `count` other users."""
  if not count:
    return
  ids = (users.user_ids(np.arange(len(users.items))) for users in splits)
  total = len(set().union(*ids))
  if count >= total:
    raise SettingsError(
      f'--neighbours={count} is too many: there are {total:,} users, so each '
      f'has {total - 1:,} others'
    )


def write_neighbours(
  path: pathlib.Path, pieces: Sequence[Piece], *, count: int
) -> None:
  """Writes the nearest users of every user, by the cosine of their vectors.

  If a user has several rows, only the first is used.
  """
  users = itertools.chain.from_iterable(users for users, _ in pieces)
  first = {}
  for row, user in enumerate(users):
    first.setdefault(user, row)
  # An array of objects, because in an array of strings all ids would take as
  # much memory as the longest.
  ids = np.array(list(first), object)
  vectors = np.concatenate([vectors for _, vectors in pieces])
  vectors = vectors[list(first.values())]
  similarities, neighbours = nearest_users(vectors, count=count)
  with new_file(path, flag='neighbours_output') as aside:
    _WRITERS[path.suffix](aside, ids, neighbours, similarities)


def nearest_users(
  vectors: np.ndarray, *, count: int, rows: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest other users of every user, exactly, the nearest first.

  Args:
    vectors: float32 [users, dim]; a vector of zeros has cosine 0 with all.
    count: the number of neighbours per user, less than the number of users.
    rows: the users whose neighbours to search [all].

  Returns:
    The cosines, float32, and the rows of the neighbours, int32, both
    [rows, count].
  """
  unit = unit_length(jnp.asarray(vectors))
  everyone = Negatives(unit, jnp.arange(len(unit)) + 1)
  search = jax.jit(functools.partial(most_similar, count=count, size=None))
  queries = min(_QUERIES, max(1, _SIMILARITIES // len(unit)))
  rows, found = np.arange(len(unit)) if rows is None else np.array(rows), []
  with progress(len(rows)) as bar:
    for begin in range(0, len(rows), queries):
      part = rows[begin : begin + queries]
      batch = search(unit[part], everyone.ids[part], everyone)
      found.append(jax.tree.map(np.asarray, batch))
      bar.update(len(batch[0]))
  similarities, neighbours = map(np.concatenate, zip(*found, strict=True))
  return similarities, neighbours


def _write_parquet(
  path: pathlib.Path,
  ids: np.ndarray,
  neighbours: np.ndarray,
  similarities: np.ndarray,
) -> None:
  count = neighbours.shape[1]
  schema = pa.schema(
    {
      'user_id': pa.string(),
      'neighbour_id': pa.list_(pa.string(), count),
      'similarity': pa.list_(pa.float32(), count),
    }
  )
  lists = functools.partial(pa.FixedSizeListArray.from_arrays, list_size=count)
  # In groups, because an array of strings in Arrow holds at most 2 GiB.
  with pa.parquet.ParquetWriter(path, schema) as writer:
    for begin in range(0, len(ids), _GROUP):
      part = slice(begin, begin + _GROUP)
      names = pa.array(ids[neighbours[part]].reshape(-1), pa.string())
      cosines = pa.array(similarities[part].reshape(-1))
      columns = [pa.array(ids[part], pa.string()), lists(names), lists(cosines)]
      writer.write_table(pa.table(columns, schema=schema))


def _write_npz(
  path: pathlib.Path,
  ids: np.ndarray,
  neighbours: np.ndarray,
  similarities: np.ndarray,
) -> None:
  ids = ids.astype(str)
  with path.open('wb') as file:
    np.savez(
      file, user_id=ids, neighbour_id=ids[neighbours], similarity=similarities
    )


_WRITERS = {'.parquet': _write_parquet, '.npz': _write_npz}
