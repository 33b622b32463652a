r"""Writes the vectors of all users of a data set, by a trained encoder.

  python -m experiments.embed --pretrained=runs/latest --output=users.parquet

encodes the users of the data set of the run, which is read from where the run
read it, unless flags of the data are given. The users need no labels. --output
has one row per user and two columns:

  user_id  the raw id, text
  vector   float32 [dim]

FILE.parquet is a Parquet table, in which a vector is a list of dim numbers;
FILE.npz has the NumPy arrays `user_id` [users] and `vector` [users, dim], for
`numpy.load`. The file is written while the users are encoded, so that only the
ids of an .npz are held in memory.

The rows are in the order of the prepared data set: all training users, then
those of validation, then of test. That is not the order of your files: match
rows by `user_id`. In a ranking task, a user has a row in each split that has
positives of the user. If a user has more behaviours than the encoder reads, it
reads the last ones; with --history=whole the vector is the mean over windows
of the whole history.

  python -m experiments.embed --pretrained=runs/latest --events=new.csv \
    --output=users.parquet

reads new tables without preparing a data set. The rows are in the order in
which users first appear. The number of items that the encoder does not know is
printed, with the names of some.

--part=2/8 encodes the second of eight equal parts of the users, so that eight
commands, each with its own --output, can share the work on any machines. Files
are written atomically; if a command is killed, only its part is repeated. The
files in order have the same rows as a single file.

--concatenate=DIR appends the vector of another run to that of --pretrained.

--item_vectors has the item table of the encoder, with `item_id` in place of
`user_id`. --neighbours_output has, for each user, the --neighbours=K other
users whose vectors have the highest cosine, the nearest first: `user_id`,
`neighbour_id` [K] and `similarity` [K]. The search is exact, and holds all
vectors in memory.
"""

from experiments.flags.small_commands import EmbedSettings
from experiments.run.command import run

if __name__ == '__main__':
  run('experiments.embed', EmbedSettings)

import collections
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from adaptssr_jax.checkpoint.encoders import restore_description
from adaptssr_jax.data import UserArrays, UserData
from experiments.embedding.neighbours import check_neighbours, write_neighbours
from experiments.embedding.users import progress, read_new_users, users_of_part
from experiments.flags.binder import SettingsError
from experiments.run import loop
from experiments.run.data import open_data, with_data_of
from experiments.run.encoder import Model, Source, open_source, with_items
from experiments.run.process import (
  is_main_process,
  print_line,
  print_result_line,
)
from experiments.run.steps import encoded
from experiments.run.vector_files import Piece, check_file, write_vectors


def main(settings: EmbedSettings) -> pathlib.Path:
  """Writes the files, and returns the path of the first."""
  if not settings.pretrained:
    raise SettingsError('--pretrained=DIR is needed: the workdir of a run')
  paths = check_outputs(settings)
  loop.check_devices(settings)
  runs = settings.pretrained, *settings.concatenate
  shard_table = settings.shard_table
  sources = [open_source(run, shard_table=shard_table) for run in runs]
  if paths.keys() - {'item_vectors'}:
    splits, models = with_users(settings, sources)
    if settings.dtype:
      models = [
        (encoder.clone(dtype=settings.dtype), params)
        for encoder, params in models
      ]
    splits = users_of_part(splits, settings.part)
    check_neighbours(splits, settings.neighbours)
    write_users(settings, paths, splits, models)
  if settings.item_vectors:
    table, known = sources[0].params['table'], sources[0].vocabulary
    write_items(paths['item_vectors'], table, known)
  return next(iter(paths.values()))


def check_outputs(settings: EmbedSettings) -> dict[str, pathlib.Path]:
  """The files to write, by the flags that name them."""
  if bool(settings.neighbours) != bool(settings.neighbours_output):
    raise SettingsError(
      'give both --neighbours=K and --neighbours_output=FILE, or neither'
    )
  if settings.neighbours and (settings.part or jax.process_count() > 1):
    raise SettingsError(
      '--neighbours needs the vectors of all users in one process: leave it '
      'out, or --part'
    )
  if settings.item_vectors and settings.concatenate:
    raise SettingsError(
      '--item_vectors is for a single run: leave it out, or --concatenate'
    )
  names = ('output', 'neighbours_output', 'item_vectors')
  given = [name for name in names if getattr(settings, name)] or ['output']
  paths = {name: pathlib.Path(getattr(settings, name)) for name in given}
  for name, path in paths.items():
    check_file(path, flag=name)
  if len(set(paths.values())) < len(paths):
    raise SettingsError(f'--{" and --".join(paths)} must be different files')
  return paths


def write_items(
  path: pathlib.Path, table: ArrayLike, known: Sequence[str]
) -> None:
  """Writes the rows of an item table, without those of padding and mask."""
  vectors = np.asarray(table)[1:-1]
  if is_main_process():
    write_vectors(
      path,
      [(list(known), vectors)],
      vectors.shape,
      name='item_id',
      flag='item_vectors',
    )
  print_result_line(f'item vectors {list(vectors.shape)}: {path}')


def with_users(
  settings: EmbedSettings, sources: Sequence[Source]
) -> tuple[list[UserArrays], list[Model]]:
  """The users to encode, by split, and the encoders for their items."""
  if settings.events and not settings.dataset:
    for name in ('labels', 'beam', 'beam_options', 'task', 'split'):
      if getattr(settings, name) != getattr(EmbedSettings, name):
        raise SettingsError(
          f'--{name} is for a prepared data set: leave it out, or give '
          '--dataset=user_tables too'
        )
    folder = pathlib.Path(settings.output or settings.neighbours_output).parent
    if len(sources) == 1:
      (source,) = sources
      users = read_new_users(settings, source.vocabulary, folder=folder)
      return [users], [(source.encoder, source.params)]
    # With the items of all runs, each run keeps those that only it knows.
    known = list(
      dict.fromkeys(item for one in sources for item in one.vocabulary)
    )
    users = read_new_users(settings, known, folder=folder)
    return [users], [with_items(one, known) for one in sources]
  if not settings.dataset:
    flags = restore_description(settings.pretrained).flags
    settings = with_data_of(settings, flags)
  if not settings.dataset:
    raise SettingsError(
      f'{settings.pretrained} does not say on which data it was trained: give '
      '--dataset=NAME or --events=FILE'
    )
  data = open_data(settings, task=settings.task)
  items = data.vocabulary.items
  users = users_of(settings, data)
  return users, [with_items(source, items) for source in sources]


def write_users(
  settings: EmbedSettings,
  paths: Mapping[str, pathlib.Path],
  splits: Sequence[UserArrays],
  models: Sequence[Model],
) -> None:
  """Encodes all users, and writes their vectors and their neighbours."""
  pieces = embedded(settings, splits, models)
  total = sum(len(users.items) for users in splits)
  shape = total, sum(encoder.vector_dim for encoder, _ in models)
  if not is_main_process():
    # This process does its share of the work; the main process has the results.
    collections.deque(pieces, maxlen=0)
    return
  pieces = with_progress(pieces, total)
  # What takes longest is done first: a command that is stopped before it has
  # written a file can be given again.
  if settings.neighbours:
    pieces, path = list(pieces), paths['neighbours_output']
    write_neighbours(path, pieces, count=settings.neighbours)
    print_result_line(
      f'the {settings.neighbours} nearest users of each: {path}'
    )
  if settings.output:
    write_vectors(paths['output'], pieces, shape)
    print_result_line(f'vectors {list(shape)}: {paths["output"]}')


def users_of(settings: EmbedSettings, data: UserData) -> list[UserArrays]:
  """The users of the splits of --split, without labels and targets."""
  names = list(data.splits) if settings.split == 'all' else [settings.split]
  if not set(names) <= set(data.splits):
    raise SettingsError(
      f'--split={settings.split}: {data.name} has no such split; choose from '
      f'all, {", ".join(data.splits)}'
    )
  splits = [data.splits[name] for name in names]
  return [UserArrays(users.user_id, users.items) for users in splits]


def embedded(
  settings: EmbedSettings,
  splits: Sequence[UserArrays],
  models: Sequence[Model],
) -> Iterator[Piece]:
  """The users with their vectors by all models, concatenated."""
  by_model = [
    encoded(settings, splits, *model, history=settings.history)
    for model in models
  ]
  for batches in zip(*by_model, strict=True):
    users, rows, _ = batches[0]
    vectors = np.concatenate([some for *_, some in batches], axis=1)
    yield users.user_ids(rows), vectors


def with_progress(pieces: Iterable[Piece], total: int) -> Iterator[Piece]:
  """Passes the pieces on, with a progress bar, and prints the time taken."""
  began = time.monotonic()
  with progress(total) as bar:
    for piece in pieces:
      bar.update(len(piece[0]))
      yield piece
  print_line(f'encoded {total:,} users in {time.monotonic() - began:.1f} s')
