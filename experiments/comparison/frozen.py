"""Cells without training: vectors of all users once, and what is read in them.

The vectors of a pre-training run are encoded once for all tasks with the same
users. A cell then is a regression on the CPU, without any JAX program.
"""

import dataclasses
import io
import pathlib
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserData, resplit
from experiments.comparison.histories import Histories, users_in_order
from experiments.finetuning.predictions import write_result
from experiments.finetuning.tasks import KINDS
from experiments.flags.binder import flag
from experiments.flags.shared import DataSettings, EncoderSettings
from experiments.flags.speed import EncodingSettings, TableSettings
from experiments.probing import features, reading
from experiments.probing.labelled_rows import labelled_rows, outputs_of
from experiments.probing.probe import encode_splits
from experiments.run import loop
from experiments.run.encoder import make_encoder, open_source, with_items
from experiments.run.workdir import atomic_write, opened_workdir

VECTORS = 'vectors.npz'


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
  task: str = flag('gender', 'The task, which has labels.')
  with_bag: bool = flag(False, 'Join the TF-IDF bag of items to each vector.')
  max_length: int = flag(
    0, 'Behaviours of the bag, the last ones; 0: all.', low=0
  )
  split_seed: int = flag(
    0, 'Seed by which the labelled rows are split; 0: as stored.', low=0
  )
  train_users: int = flag(
    0,
    'Labelled rows to train on, the first of the shuffled split; 0: all.',
    low=0,
  )


def encode(
  settings: VectorSettings, *, data: UserData, histories: Histories
) -> np.ndarray:
  """Writes the vectors of all users of a task, and returns them.

  Returns:
    float32 [users, features], in the order of `histories`.
  """
  with opened_workdir(settings) as folder:
    loop.check_devices(settings)
    items = data.vocabulary.items
    if source := open_source(settings, settings.pretrained):
      encoder, params = with_items(source, items)
    else:
      key = jax.random.key(settings.seed)
      encoder, params = make_encoder(settings, items, key)
    users = users_in_order(data, histories)
    vectors = encode_splits(settings, [users], encoder, params)
    file = io.BytesIO()
    np.savez(file, vector=vectors)
    atomic_write(folder / VECTORS, file.getvalue())
    return vectors


def read_vectors(
  settings: ReadingSettings, *, data: UserData, histories: Histories
) -> dict[str, Any]:
  """Fits a regression on vectors, and leaves the same files as fine-tuning."""
  with opened_workdir(settings) as folder:
    dealt = resplit(data, settings.split_seed)
    train = dealt.splits['train'].first(settings.train_users)
    dealt = dealt._replace(splits=dealt.splits | {'train': train})
    labelled = labelled_rows(dealt, KINDS[data.kind].select_by[0])
    number = np.concatenate([part.number for part in dealt.splits.values()])
    places = histories.places[number]
    with np.load(pathlib.Path(settings.vectors) / VECTORS) as found:
      vectors = found['vector'][places]
    if settings.with_bag:
      # Of all users: labelled ones alone would not show which items are rare.
      bag = features.tf_idf(
        features.bags(
          users_in_order(data, histories).items,
          len(data.vocabulary.items),
          max_length=settings.max_length,
        )
      )[places]
      best = reading.best_of(reading.joined_candidates(vectors, bag, labelled))
    else:
      best = reading.read(vectors, labelled)
    about = {'task': settings.task} | best.chosen
    return write_result(folder, about, outputs_of(best, dealt), dealt)
