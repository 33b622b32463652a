"""Logistic regression on the vectors of a frozen encoder."""

import contextlib
import pathlib
from typing import Any

import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.models import UserEncoder
from experiments.finetune_settings import FinetuneSettings
from experiments.logs import open_log
from experiments.scikit_learn import scikit_learn
from experiments.settings import SettingsError
from experiments.speed import (
  length_seen,
  make_buckets,
  make_encoding,
  sample_lengths,
)
from experiments.tasks import (
  KINDS,
  examples_of,
  goodness,
  predict_users,
  select_by,
)

# Inverse strengths of the penalty, of which validation chooses.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


def probe(
  settings: FinetuneSettings,
  folder: pathlib.Path,
  data: UserData,
  encoder: UserEncoder,
  params: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Fits a regression of each strength, and tests the best one.

  Args:
    settings: of the run.
    folder: of the run; validation is logged in its `metrics.jsonl`.
    data: a task with classes.
    encoder: gives the vectors, without dropout.
    params: of the encoder.

  Returns:
    The metrics of the validation and test users, and the outputs of either.

  Raises:
    SettingsError: scikit-learn is missing, or all training rows are of one
      class.
  """
  kind, metric = KINDS[data.kind], select_by(settings, data)
  splits = examples_of(settings, data)
  label = {name: split.label for name, split in splits.items()}
  check_classes(label['train'], settings)
  vectors = encode_splits(settings, splits, encoder, params)
  best = None
  with contextlib.closing(open_log(folder, resume_at=0)) as log:
    for number, strength in enumerate(STRENGTHS, 1):
      fitted = fit_regression(
        vectors['train'], label['train'], settings, strength
      )
      outputs = {
        name: regression_outputs(fitted, vectors[name], data)
        for name in ('validation', 'test')
      }
      values = kind.measure(outputs['validation'], label['validation'])
      named = {f'validation_{name}': value for name, value in values.items()}
      log.write(number, {'C': strength} | named)
      # Among equals the first, which is the simplest.
      if best is None or goodness(values, metric) > best[0]:
        best = goodness(values, metric), strength, outputs
  _, strength, outputs = best
  return {'best_step': 0, 'C': strength}, outputs


def check_classes(label: np.ndarray, settings: FinetuneSettings) -> None:
  """Raises `SettingsError` where there is nothing that could be fitted."""
  scikit_learn('--mode=probe')
  if len(np.unique(label)) > 1:
    return
  few = settings.train_users
  raise SettingsError(
    f'--mode=probe needs training rows of two classes; all {len(label):,} are '
    'of one: '
    + (f'take more than --train_users={few}' if few else 'take --mode=frozen')
  )


def encode_splits(
  settings: FinetuneSettings,
  splits: dict[str, UserArrays],
  encoder: UserEncoder,
  params: dict[str, Any],
) -> dict[str, np.ndarray]:
  """The vectors of the users of each split, [users, features]."""
  length = length_seen(splits.values(), encoder.max_length)
  buckets = make_buckets(settings, sample_lengths(splits['train'], length))
  encode, params = make_encoding(
    settings, encoder, params, buckets=buckets, length=length
  )
  return {
    name: predict_users(
      params,
      users=users,
      predict=encode,
      settings=settings,
      length=length,
    )
    for name, users in splits.items()
  }


def fit_regression(
  vectors: np.ndarray,
  label: np.ndarray,
  settings: FinetuneSettings,
  strength: float,
) -> Any:
  """Features of mean 0 and variance 1, then a regression: scikit-learn's."""
  learn = scikit_learn('--mode=probe')
  weight = {1: settings.positive_weight}
  regression = learn.linear_model.LogisticRegression(
    C=strength,
    max_iter=1000,
    class_weight=None if settings.positive_weight == 1 else weight,
  )
  scaler = learn.preprocessing.StandardScaler()
  return learn.pipeline.make_pipeline(scaler, regression).fit(vectors, label)


def regression_outputs(
  fitted: Any, vectors: np.ndarray, data: UserData
) -> np.ndarray:
  """What a network would put out: logits of all classes, or log-odds."""
  if data.kind == 'conversion':
    return fitted.decision_function(vectors).astype(np.float32)
  # A class that is not among the training rows has no chance.
  shape = len(vectors), len(data.vocabulary.labels)
  logits = np.full(shape, -np.inf, np.float32)
  logits[:, fitted.classes_] = fitted.predict_log_proba(vectors)
  return logits
