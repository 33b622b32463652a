"""Chooses the epoch of a pre-training run by a probe of its vectors.

The loss of a ranking of views is no judge of epochs: it falls while the vectors
get worse. A logistic regression on the vectors of the users of a task, fitted
on its training rows and measured on its validation rows, is one. The test rows
are not looked at.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class EpochProbe(NamedTuple):
  """A task whose labels judge the vectors of an epoch."""

  # Of the training, validation and test rows, without labels.
  users: Sequence[UserArrays]
  labelled: Labelled  # the labels of these rows
  # (params, *, users) -> their vectors, [rows, dim].
  encode: Callable[..., np.ndarray]

  def score(self, params: dict[str, Any]) -> float:
    """The accuracy, or the AUC of a conversion, on the validation rows."""
    vectors = [self.encode(params, users=users) for users in self.users]
    return read(np.concatenate(vectors), self.labelled).score


def open_probe(
  settings: RunSettings,
  encoder: UserEncoder,
  items: Sequence[str],
  *,
  task: str,
) -> EpochProbe:
  """Opens the task that judges the epochs."""
  data = open_data(settings, task)
  if data.kind not in ('classification', 'conversion'):
    raise SettingsError(
      f'--probe_task={task} is a {data.kind} task: --select_by=probe needs one '
      'with classes'
    )
  validation = data.splits['validation']
  # A model is also tested, here on a row that is of no interest.
  judges = {
    'train': data.splits['train'],
    'validation': validation,
    'test': validation.first(1),
  }
  labelled = labelled_rows(data._replace(splits=judges))
  users, own = [], data.vocabulary.items
  for split in judges.values():
    histories = split.items
    if list(own) != list(items):
      histories = renumbered(histories, own, items)
    users.append(UserArrays(split.user_id, histories))
  length, _, buckets = lengths_of(settings, users, encoder)
  encode = pmap_step(
    encoding_step(settings, encoder, buckets=buckets, length=length)
  )
  return EpochProbe(
    users,
    labelled,
    functools.partial(
      predict_users, predict=encode, settings=settings, length=length
    ),
  )
