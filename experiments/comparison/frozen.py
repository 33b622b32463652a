"""The frozen columns of a comparison: encoding all users once, then probes.

The vectors of a pre-training run are encoded once for all tasks with the same
users. A cell is then a regression on the CPU, without any JAX program.
"""

import dataclasses
import hashlib
import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptssr_jax.data import RaggedView, UserArrays, UserData, resplit
from experiments.finetuning.predictions import write_result
from experiments.flags.binder import flag
from experiments.flags.process import EncodingSettings, TableSettings
from experiments.flags.shared import (
  DataSettings,
  EncoderSettings,
  concatenate_flag,
  split_seed_flag,
  train_users_flag,
)
from experiments.probing import features, reading
from experiments.probing.probe import (
  encode_concatenated,
  history_numbers,
  outputs_of,
  readings_of,
)
from experiments.run import loop
from experiments.run.encoder import make_encoder, open_source, with_items
from experiments.run.workdir import atomic_savez, opened_workdir

VECTORS = 'vectors.npz'


class Histories(NamedTuple):
  """The histories of a task in an order that does not depend on its labels."""

  name: str  # the same for all tasks with the same users, histories and items
  order: np.ndarray  # the number of the stored history at each place
  # Of each row by its number, or in a ranking of each user, the place.
  places: np.ndarray

  def places_of(self, users: UserArrays) -> np.ndarray:
    """Where the histories of these users are, of any split of any seed."""
    is_ranking = users.user_number is not None
    return self.places[users.user_number if is_ranking else users.number]


def histories_of(data: UserData) -> Histories:
  """The histories of a task with the stored splits.

  They are ordered by a digest of the user id and the items, so that tasks which
  only label the same users otherwise agree in the order and in the name. In a
  ranking a user who is in several splits has the same history in all of them,
  and one place.
  """
  digests = [
    hashlib.blake2b(
      user_id.tobytes() + b'\0' + items.astype('<i4').tobytes(), digest_size=16
    ).digest()
    for part in data.splits.values()
    for user_id, items in zip(part.user_id, part.items, strict=True)
  ]
  owners = history_numbers(data)
  first = np.unique(owners, return_index=True)[1]
  order = np.array(sorted(first.tolist(), key=digests.__getitem__))
  places = np.zeros(owners.max() + 1, int)
  places[owners[order]] = np.arange(len(order))
  whole = hashlib.blake2b(digest_size=6)
  for text in itertools.chain(
    (digests[row] for row in order),
    (f'{item}\0'.encode() for item in data.vocabulary.items),
  ):
    whole.update(text)
  name = f'{len(order)}_users_{whole.hexdigest()}'
  return Histories(name, order, places)


def users_in_order(data: UserData, histories: Histories) -> UserArrays:
  """The users at each place, without labels and targets."""
  parts = data.splits.values()
  columns = [part.user_id for part in parts], [part.items for part in parts]
  return UserArrays(
    *(RaggedView(tuple(column), histories.order) for column in columns)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorSettings(
  DataSettings, EncodingSettings, TableSettings, EncoderSettings
):
  """How the users of a data set are encoded."""

  workdir: str = flag(
    'runs/vectors', 'Folder of the vectors.', mutable_on_resume=True
  )
  pretrained: str = flag(
    '', 'Workdir of the run whose encoder it is; else it is random.'
  )
  concatenate: tuple[str, ...] = concatenate_flag()
  seed: int = flag(0, 'Of a random encoder.', low=0, high=2**32 - 1)
  batch_size: int = flag(
    512, 'Users of a batch, over all devices.', low=1, mutable_on_resume=True
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingSettings(DataSettings):
  """How vectors are read."""

  workdir: str = flag(
    'runs/reading', 'Folder of the result.', mutable_on_resume=True
  )
  vectors: str = flag('', 'Folder of the vectors.')
  task: str = flag('gender', 'The task.')
  with_bag: bool = flag(False, 'Join the TF-IDF bag of items to each vector.')
  max_length: int = flag(
    0, 'Behaviours of the bag, the last ones; 0: all.', low=0
  )
  split_seed: int = split_seed_flag()
  train_users: int = train_users_flag()


def encode(
  settings: VectorSettings, *, data: UserData, histories: Histories
) -> np.ndarray:
  """Writes and returns the vectors of all users, in the order of `histories`.

  They are float32 [users, features].
  """
  with opened_workdir(settings) as folder:
    # No flag of a comparison sets it, so that it follows the devices.
    devices = jax.device_count()
    batch_size = -(-settings.batch_size // devices) * devices
    settings = dataclasses.replace(settings, batch_size=batch_size)
    loop.check_devices(settings)
    items = data.vocabulary.items
    if settings.pretrained:
      runs = settings.pretrained, *settings.concatenate
      models = [with_items(open_source(settings, run), items) for run in runs]
    else:
      models = [make_encoder(settings, items, jax.random.key(settings.seed))]
    users = users_in_order(data, histories)
    vectors = encode_concatenated(settings, [users], models)
    atomic_savez(folder / VECTORS, vector=vectors)
    return vectors


def read_vectors(
  settings: ReadingSettings, *, data: UserData, histories: Histories
) -> dict[str, Any]:
  """Fits a regression on vectors, and leaves the same files as fine-tuning."""
  with opened_workdir(settings) as folder:
    splits = resplit(data, settings.split_seed).splits
    train = splits['train'].first(settings.train_users)
    known = data._replace(splits=splits | {'train': train})
    with np.load(pathlib.Path(settings.vectors) / VECTORS) as found:
      vectors = {
        name: found['vector'][histories.places_of(part)]
        for name, part in known.splits.items()
      }
    bag = None
    if settings.with_bag:
      # Of all users: labelled ones alone would not show which items are rare.
      bag = features.tf_idf(
        features.bags(
          users_in_order(data, histories).items,
          len(data.vocabulary.items),
          max_length=settings.max_length,
        )
      )
      places = [histories.places_of(part) for part in known.splits.values()]
      bag = bag[np.concatenate(places)]
    best = reading.best_of(readings_of(vectors, known, bag=bag))
    about = {'task': settings.task} | best.chosen
    return write_result(folder, about, outputs_of(best, known), known)
