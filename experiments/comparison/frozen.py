"""The frozen columns of a comparison: probes on the vectors of encoders.

The users of a task are encoded once for all splits and shares of its labels. A
cell is then a regression on the CPU, which runs no JAX program.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserArrays, UserData, resplit
from experiments.finetuning.data import with_first_rows
from experiments.finetuning.predictions import write_result
from experiments.flags.binder import flag, mutable_flag
from experiments.flags.process import (
  EncodingSettings,
  TableSettings,
  UserVectorSettings,
)
from experiments.flags.shared import (
  DataSettings,
  EncoderSettings,
  LabelSettings,
)
from experiments.probing.classifiers import best_of
from experiments.probing.probe import (
  distinct_users,
  encode_splits,
  history_numbers,
  probe_candidates,
  weighted_bags,
)
from experiments.run import loop
from experiments.run.encoder import make_encoder, open_source, with_items
from experiments.run.workdir import atomic_savez, opened_workdir

VECTORS = 'vectors.npz'


def rows_of(users: UserArrays, data: UserData) -> np.ndarray:
  """The place of each user, who may be resplit, among `distinct_users`."""
  is_ranking = users.user_number is not None
  number = users.user_number if is_ranking else users.number
  return np.searchsorted(np.unique(history_numbers(data)), number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorSettings(
  UserVectorSettings,
  DataSettings,
  EncodingSettings,
  TableSettings,
  EncoderSettings,
):
  """How the users of a data set are encoded."""

  workdir: str = mutable_flag('runs/vectors', 'Folder of the vectors.')
  pretrained: str = flag(
    '', 'Workdir of the run whose encoder is used; by default it is random.'
  )
  seed: int = flag(0, 'Seed of a random encoder.', low=0, high=2**32 - 1)
  batch_size: int = mutable_flag(
    512, 'Users of a batch, over all devices.', low=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings(DataSettings, LabelSettings):
  """The probe of a frozen cell."""

  workdir: str = mutable_flag('runs/probe', 'Folder of the result.')
  vectors: str = flag('', 'Folder of the vectors.')
  task: str = flag('gender', 'The task.')
  with_bag: bool = flag(False, 'Join the TF-IDF bag of items to each vector.')
  max_length: int = flag(
    0, 'The number of last behaviours in the bag; 0: all.', low=0
  )


def encode(settings: VectorSettings, *, data: UserData) -> np.ndarray:
  """Writes the vectors of the `distinct_users` of a task.

  Returns:
    float32 [users, features].
  """
  with opened_workdir(settings) as folder:
    # A comparison has no flag for the batch size: it is rounded up to a
    # multiple of the number of devices.
    devices = jax.device_count()
    batch_size = -(-settings.batch_size // devices) * devices
    settings = dataclasses.replace(settings, batch_size=batch_size)
    loop.check_devices(settings)
    items, shard_table = data.vocabulary.items, settings.shard_table
    if settings.pretrained:
      runs = settings.pretrained, *settings.concatenate
      sources = [open_source(run, shard_table=shard_table) for run in runs]
      models = [with_items(source, items) for source in sources]
    else:
      key = jax.random.key(settings.seed)
      models = [make_encoder(settings, items, key, shard_table=shard_table)]
    users, _ = distinct_users(data)
    vectors = encode_splits(settings, {'all': users}, models)['all']
    atomic_savez(folder / VECTORS, vector=vectors)
    return vectors


def probe_vectors(settings: ProbeSettings, *, data: UserData) -> dict[str, Any]:
  """Fits a regression on vectors, and writes the files that fine-tuning does.

  Returns:
    The content of `result.json`.
  """
  with opened_workdir(settings) as folder:
    task = resplit(data, settings.split_seed)
    known = with_first_rows(task, settings.train_users)
    with np.load(pathlib.Path(settings.vectors) / VECTORS) as found:
      vector = found['vector']
    vectors = {
      name: vector[rows_of(part, data)] for name, part in known.splits.items()
    }
    bag = None
    if settings.with_bag:
      bag = weighted_bags(task, known, max_length=settings.max_length)
    best = best_of(probe_candidates(vectors, known, bag=bag))
    about = {'task': settings.task} | best.chosen
    return write_result(folder, about, best.outputs, known)
