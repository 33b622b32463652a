"""The frozen columns of a comparison: probes on the vectors of encoders.

The users of a task are encoded once for all splits and shares of its labels. A
cell is then a regression on the CPU, which runs no JAX program.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import Ragged, UserArrays, UserData, resplit
from experiments.comparison.methods import FROZEN, FROZEN_WITH_BAG, Method
from experiments.comparison.options import CompareSettings
from experiments.finetuning.predictions import write_result
from experiments.flags.binder import SettingsError, flag, unknown
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
from experiments.probing import classifiers, features
from experiments.probing.probe import (
  encode_concatenated,
  history_numbers,
  outputs_of,
  probe_candidates,
)
from experiments.run import loop
from experiments.run.encoder import make_encoder, open_source, with_items
from experiments.run.workdir import atomic_savez, opened_workdir

VECTORS = 'vectors.npz'


def methods_of_vectors(
  settings: CompareSettings, known: Mapping[str, Method]
) -> dict[str, Method]:
  """The rows of --whole_history, and those of --concatenated, of any rows."""
  whole = whole_history_methods(settings.whole_history, known)
  return whole | concatenated_methods(settings.concatenated, known | whole)


def whole_history_methods(
  names: Sequence[str], known: Mapping[str, Method]
) -> dict[str, Method]:
  """Methods whose vectors are those of others, of the whole history."""
  _check_trained('--whole_history', names, known)
  return {
    f'{name}_whole': Method(
      title=f'{known[name].title}, whole history',
      concatenated=(name,),
      history='whole',
      modes=(FROZEN, FROZEN_WITH_BAG),
    )
    for name in names
  }


def concatenated_methods(
  rows: Sequence[str], known: Mapping[str, Method]
) -> dict[str, Method]:
  """Methods whose vectors are those of several others, concatenated."""
  found = {}
  for row in rows:
    names, text = tuple(row.split()), f'--concatenated={row}'
    _check_trained(text, names, known)
    if len(set(names)) < max(len(names), 2):
      raise SettingsError(f'{text}: give two different methods')
    histories = {known[name].history for name in names}
    if len(histories) > 1:
      raise SettingsError(
        f'{text}: give the vectors of the whole history of all or of none'
      )
    key = '_and_'.join(names)
    if len(key) > 200:  # The key is the name of a folder.
      key = f'{key[:190]}_{zlib.crc32(key.encode()):08x}'
    found[key] = Method(
      title=', concatenated with '.join(known[name].title for name in names),
      concatenated=[
        run for name in names for run in known[name].concatenated or (name,)
      ],
      history=histories.pop(),
      modes=(FROZEN, FROZEN_WITH_BAG),
    )
  return found


def _check_trained(
  flag_text: str, names: Sequence[str], known: Mapping[str, Method]
) -> None:
  """Refuses names of methods that are unknown or not pre-trained."""
  for name in names:
    if name not in known:
      raise SettingsError(f'{flag_text}: {unknown(name, known)}')
    if not (known[name].flags or known[name].concatenated):
      raise SettingsError(f'{flag_text}: {name} is not pre-trained')


def stored_users(data: UserData) -> UserArrays:
  """The histories of a task, each once, without labels and targets.

  They are in the order of `history_numbers`. A user of a ranking may be in
  several splits, with the same history, which is taken once.
  """
  first = np.unique(history_numbers(data), return_index=True)[1]
  parts = data.splits.values()
  columns = [part.user_id for part in parts], [part.items for part in parts]
  return UserArrays(*(Ragged.concatenate(of).take(first) for of in columns))


def rows_of(users: UserArrays, data: UserData) -> np.ndarray:
  """The row of `stored_users` of each of these users, who may be resplit."""
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

  workdir: str = flag(
    'runs/vectors', 'Folder of the vectors.', mutable_on_resume=True
  )
  pretrained: str = flag(
    '', 'Workdir of the run whose encoder is used; by default it is random.'
  )
  seed: int = flag(0, 'Seed of a random encoder.', low=0, high=2**32 - 1)
  batch_size: int = flag(
    512, 'Users of a batch, over all devices.', low=1, mutable_on_resume=True
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings(DataSettings, LabelSettings):
  """The probe of a frozen cell."""

  workdir: str = flag(
    'runs/probe', 'Folder of the result.', mutable_on_resume=True
  )
  vectors: str = flag('', 'Folder of the vectors.')
  task: str = flag('gender', 'The task.')
  with_bag: bool = flag(False, 'Join the TF-IDF bag of items to each vector.')
  max_length: int = flag(
    0, 'The number of last behaviours in the bag; 0: all.', low=0
  )


def encode(settings: VectorSettings, *, data: UserData) -> np.ndarray:
  """Writes the vectors of the `stored_users` of a task.

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
    vectors = encode_concatenated(
      settings, [stored_users(data)], models, history=settings.history
    )
    atomic_savez(folder / VECTORS, vector=vectors)
    return vectors


def probe_vectors(settings: ProbeSettings, *, data: UserData) -> dict[str, Any]:
  """Fits a regression on vectors, and writes the files that fine-tuning does.

  Returns:
    The content of `result.json`.
  """
  with opened_workdir(settings) as folder:
    splits = resplit(data, settings.split_seed).splits
    train = splits['train'].first(settings.train_users)
    known = data._replace(splits=splits | {'train': train})
    rows = {name: rows_of(part, data) for name, part in known.splits.items()}
    with np.load(pathlib.Path(settings.vectors) / VECTORS) as found:
      vector = found['vector']
    vectors = {name: vector[some] for name, some in rows.items()}
    bag = None
    if settings.with_bag:
      # Document frequencies are counted over all users, trained on or not.
      bag = features.tf_idf(
        features.bags(
          stored_users(data).items,
          len(data.vocabulary.items),
          max_length=settings.max_length,
        )
      )
      bag = bag[np.concatenate(list(rows.values()))]
    best = classifiers.best_of(probe_candidates(vectors, known, bag=bag))
    about = {'task': settings.task} | best.chosen
    return write_result(folder, about, outputs_of(best, known), known)
