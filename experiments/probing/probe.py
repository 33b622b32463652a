"""Fine-tuning by a probe: a simple model on the vectors of a frozen encoder."""

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.encoder.model import UserEncoder
from experiments.finetuning.data import examples_of
from experiments.finetuning.tasks import KINDS, as_score, select_by
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import SELECT_BY, FinetuneSettings
from experiments.flags.process import EncodingSettings
from experiments.probing.classifiers import (
  Labelled,
  ProbeResult,
  best_of,
  best_regression,
  candidates,
  joined_candidates,
  on_vectors,
  task_outputs,
)
from experiments.probing.features import Features, bags, tf_idf
from experiments.probing.rankings import ranking_candidates
from experiments.run.encoder import Model
from experiments.run.logs import MetricsLog
from experiments.run.steps import encoded


def probe(
  settings: FinetuneSettings,
  folder: pathlib.Path,
  data: UserData,
  models: Sequence[Model],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Fits the candidates of `--probe_model`, and tests the best one.

  Args:
    models: the encoders, whose vectors are concatenated.

  Returns:
    The settings that validation chose, and the outputs for the validation and
    test rows.
  """
  known = probe_rows(settings, data)
  vectors = encode_concatenated(
    settings, known.splits.values(), models, history=settings.history
  )
  bag = None
  if settings.with_bag:
    # Document frequencies are counted over all rows, used for training or not.
    rows = labelled_rows(data).rows
    kept = [
      rows[name][: len(users.items)] for name, users in known.splits.items()
    ]
    bag = tf_idf(bags_of_rows(data, 0))[np.concatenate(kept)]
  found = probe_candidates(
    vectors_by_split(vectors, known),
    known,
    select_by(settings, data),
    bag=bag,
    model=settings.probe_model,
    positive_weight=settings.positive_weight,
  )
  results = []
  with contextlib.closing(MetricsLog(folder, settings, resume_at=0)) as log:
    for number, result in enumerate(found, 1):
      outputs = outputs_of(result, known)['validation']
      values = KINDS[data.kind].measure(
        outputs, known.splits['validation'].label
      )
      validation = {
        f'validation_{name}': value for name, value in values.items()
      }
      log.write(number, result.chosen | validation)
      results.append(result)
  best = best_of(results)
  return {'best_step': 0} | best.chosen, outputs_of(best, data)


def probe_rows(settings: FinetuneSettings, data: UserData) -> UserData:
  """The data with the rows that the flags select; refuses a single class."""
  known = data._replace(splits=examples_of(settings, data))
  if data.kind != 'ranking':
    check_classes(np.asarray(known.splits['train'].label), settings)
  return known


def probe_candidates(
  vectors: Mapping[str, np.ndarray],
  data: UserData,
  metric: str | None = None,
  *,
  bag: Features | None = None,
  model: str = 'logistic',
  positive_weight: float = 1.0,
) -> Iterator[ProbeResult]:
  """Fits the candidates of a probe, for labels or for a ranking.

  Args:
    vectors: of the users of each split, [users, features].
    metric: the metric on validation rows that is the score [the first of
      `SELECT_BY`].
    bag: bags of the same users, which are joined to the vectors of a task with
      labels.
  """
  if data.kind == 'ranking':
    return ranking_candidates(vectors, data, metric or SELECT_BY['ranking'][0])
  labelled = labelled_rows(data, metric, positive_weight=positive_weight)
  features = np.concatenate(list(vectors.values()))
  if bag is None:
    return candidates(features, labelled, model)
  return joined_candidates(features, bag, labelled, model)


def history_numbers(data: UserData) -> np.ndarray:
  """The number of each stored history, [histories], split after split.

  It is the number of the row; in a ranking, where a user may be in several
  splits, it is the number of the user.
  """
  parts = data.splits.values()
  if data.kind == 'ranking':
    return np.concatenate([part.user_number for part in parts])
  return np.arange(sum(len(part.items) for part in parts))


def vectors_by_split(
  vectors: np.ndarray, data: UserData
) -> dict[str, np.ndarray]:
  """Vectors by split, from those of all splits, one after another."""
  ends = np.cumsum([len(users.items) for users in data.splits.values()])
  return dict(zip(data.splits, np.split(vectors, ends[:-1]), strict=True))


def probe_head(
  settings: FinetuneSettings,
  data: UserData,
  encoder: UserEncoder,
  params: dict[str, Any],
) -> dict[str, Any]:
  """The parameters of a linear head that is equivalent to the best probe."""
  known = probe_rows(settings, data)
  vectors = encode_splits(settings, known.splits.values(), encoder, params)
  labelled = labelled_rows(
    known,
    select_by(settings, data),
    positive_weight=settings.positive_weight,
  )
  best = best_regression(vectors, labelled)
  kernel, bias = on_vectors(best.linear, vectors, labelled.rows['train'])
  if data.kind == 'conversion':
    # A network has one output: the log-odds.
    kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
  return {'output': {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray(bias)}}


def check_classes(label: np.ndarray, settings: FinetuneSettings) -> None:
  """Refuses labels of a single class, and LightGBM if it is not installed."""
  flag = '--head=probe' if settings.head == 'probe' else '--mode=probe'
  if settings.probe_model == 'lightgbm':
    try:
      import lightgbm  # noqa: F401
    except (ImportError, OSError) as error:
      # OSError: a system library that LightGBM needs is missing.
      raise SettingsError(
        f'--probe_model=lightgbm needs LightGBM ({error}): '
        "pip install '.[lightgbm]'"
      ) from error
  if len(np.unique(label)) > 1:
    return
  few = settings.train_users
  raise SettingsError(
    f'{flag} needs training rows of two classes; all {len(label):,} are '
    'of one: '
    + (f'take more than --train_users={few}' if few else 'take --mode=frozen')
  )


def encode_splits(
  settings: EncodingSettings,
  splits: Collection[UserArrays],
  encoder: UserEncoder,
  params: dict[str, Any],
  *,
  history: str = 'last',
) -> np.ndarray:
  """The vectors of the users, split after split, [users, features].

  Args:
    history: as in `encoded`.

  Raises:
    SettingsError: a vector has nan or infinity, which happens if the training
      of the encoder diverged.
  """
  splits = [UserArrays(users.user_id, users.items) for users in splits]
  found = encoded(settings, splits, encoder, params, history=history)
  vectors = np.concatenate([some for *_, some in found])
  if not np.isfinite(vectors).all():
    raise SettingsError(
      'the encoder gives vectors with nan or infinity, on which no probe can '
      'be fitted: take an encoder whose training did not diverge'
    )
  return vectors


def encode_concatenated(
  settings: EncodingSettings,
  splits: Collection[UserArrays],
  models: Sequence[Model],
  *,
  history: str,
) -> np.ndarray:
  """The vectors of several encoders by `encode_splits`, concatenated."""
  return np.concatenate(
    [
      encode_splits(settings, splits, *model, history=history)
      for model in models
    ],
    axis=1,
  )


def probe_name(result: dict[str, Any]) -> str:
  """The settings that validation chose, in words.

  Example:
    >>> probe_name({'bag_weight': 0.5, 'C': 0.01})
    'a probe with bag_weight 0.5, C 0.01'
  """
  known = ('bag_weight', 'C', 'trees', 'ridge')
  names = [name for name in known if name in result]
  return 'a probe with ' + ', '.join(f'{x} {result[x]:g}' for x in names)


def labelled_rows(
  data: UserData, metric: str | None = None, *, positive_weight: float = 1.0
) -> Labelled:
  """The labels of all rows: those of train, then validation, then test.

  Args:
    metric: the metric on validation rows that is the score [the first of
      `SELECT_BY`].
  """
  metric = metric or SELECT_BY[data.kind][0]
  parts = {name: np.asarray(part.label) for name, part in data.splits.items()}

  def score(outputs: np.ndarray, label: np.ndarray) -> float:
    values = KINDS[data.kind].measure(task_outputs(data.kind, outputs), label)
    # The AUC is not defined if all validation rows are of one class.
    return as_score(values, metric) if metric in values else 0.0

  ends = np.cumsum([len(label) for label in parts.values()])
  rows = {
    name: np.arange(end - len(label), end)
    for (name, label), end in zip(parts.items(), ends, strict=True)
  }
  return Labelled(
    np.concatenate(list(parts.values())),
    rows,
    len(data.vocabulary.labels),
    positive_weight,
    score,
  )


def outputs_of(result: ProbeResult, data: UserData) -> dict[str, np.ndarray]:
  """The outputs for validation and test rows, in the form of a network's."""
  return {
    name: task_outputs(data.kind, outputs)
    for name, outputs in result.outputs.items()
  }


def bags_of_rows(data: UserData, max_length: int) -> Features:
  """The bags of all rows, in the order of `labelled_rows`.

  Args:
    max_length: the number of last behaviours that are used; 0: all.
  """
  from scipy import sparse

  num_items = len(data.vocabulary.items)
  return sparse.vstack(
    [
      bags(users.items, num_items, max_length=max_length)
      for users in data.splits.values()
    ],
    format='csr',
  )
