"""Chooses the epoch of a pre-training run by a probe of its vectors.

The loss of a ranking of views is no judge of epochs: it falls while the vectors
get worse. A logistic regression on the vectors of the users of a task, fitted
on its training rows and measured on its validation rows, is one. The test rows
are not looked at.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adaptssr_jax.data import UserArrays
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.training.step import pmap_step
from experiments.finetuning.predictions import predict_users
from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.probing.probe import labelled_rows
from experiments.probing.reading import Labelled, read
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
  if data.kind not in ('classification', 'conversion'):
    raise SettingsError(
      f'--probe_task={task} is a {data.kind} task: --select_by=probe needs one '
      'with classes'
    )
  validation = data.splits['validation']
  # A model is also tested, here on a row that is of no interest.
  scored = {
    'train': data.splits['train'],
    'validation': validation,
    'test': validation.first(1),
  }
  labelled = labelled_rows(data._replace(splits=scored))
  users, own = [], data.vocabulary.items
  for split in scored.values():
    histories = split.items
    if list(own) != list(items):
      histories = renumbered(histories, own, items)
    users.append(UserArrays(split.user_id, histories))
  length, _, buckets = lengths_of(settings, users, encoder)
  encode = pmap_step(
    encoding_step(settings, encoder, buckets=buckets, length=length)
  )
  return functools.partial(
    score,
    users=users,
    labelled=labelled,
    encode=functools.partial(
      predict_users, predict=encode, settings=settings, length=length
    ),
  )


def score(
  params: dict[str, Any],
  *,
  users: Sequence[UserArrays],
  labelled: Labelled,
  encode: Callable[..., np.ndarray],
) -> float:
  """The accuracy, or the AUC of a conversion, on the validation rows.

  Args:
    users: of the training, validation and test rows, without labels.
    labelled: the labels of these rows.
    encode: (params, *, users) -> their vectors, [rows, dim].
  """
  vectors = [encode(params, users=some) for some in users]
  return read(np.concatenate(vectors), labelled).score
