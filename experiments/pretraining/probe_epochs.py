"""Chooses the epoch of a pre-training run by a probe of its vectors.

The loss of a view ranking cannot be used to choose an epoch: it falls while the
vectors get worse. The probe is a regression on the user vectors, fitted on the
training rows of a task and measured on its validation rows. Its test rows are
not used.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.training.step import pmap_step
from experiments.finetuning.predictions import predict_users
from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.probing.classifiers import best_of
from experiments.probing.probe import probe_candidates
from experiments.run.data import open_data, renumbered
from experiments.run.speed import encoding_step, lengths_of


def open_probe(
  settings: RunSettings,
  encoder: UserEncoder,
  items: Sequence[str],
  *,
  task: str,
) -> Callable[[dict[str, Any]], float]:
  """Opens the task that scores the epochs: (params) -> `score`."""
  data = open_data(settings, task)
  if data.kind == 'pretrain':
    raise SettingsError(
      f'--probe_task={task} has no labels and no targets: --select_by=probe '
      'needs some to predict'
    )
  validation = data.splits['validation']
  # A model is also tested, here on a row that is of no interest.
  scored = {
    'train': data.splits['train'],
    'validation': validation,
    'test': validation.first(1),
  }
  users, own = {}, data.vocabulary.items
  for name, split in scored.items():
    histories = split.items
    if list(own) != list(items):
      histories = renumbered(histories, own, items)
    users[name] = UserArrays(split.user_id, histories)
  length, _, buckets = lengths_of(settings, users.values(), encoder)
  encode = pmap_step(
    encoding_step(settings, encoder, buckets=buckets, length=length)
  )
  return functools.partial(
    score,
    users=users,
    data=data._replace(splits=scored),
    encode=functools.partial(
      predict_users, predict=encode, settings=settings, length=length
    ),
  )


def score(
  params: dict[str, Any],
  *,
  users: Mapping[str, UserArrays],
  data: UserData,
  encode: Callable[..., np.ndarray],
) -> float:
  """The accuracy on the validation rows, of a conversion the AUC.

  Of a ranking the NDCG@10.

  Args:
    users: of the training, validation and test rows, without labels.
    data: the same users, with what is to be predicted of them.
    encode: (params, *, users) -> their vectors, [users, features].
  """
  vectors = {name: encode(params, users=some) for name, some in users.items()}
  return best_of(probe_candidates(vectors, data)).score
