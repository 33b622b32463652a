"""Fine-tuning by a probe: a simple model on the vectors of a frozen encoder."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from adaptssr_jax.data import Ragged, UserArrays, UserData
from experiments.finetuning.data import examples_of
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings
from experiments.flags.process import UserVectorSettings
from experiments.probing.classifiers import (
  ProbeResult,
  best_of,
  candidates,
  linear_head,
)
from experiments.probing.features import BySplit, bags, joined, tf_idf
from experiments.probing.rankings import ranking_candidates
from experiments.run.encoder import Model
from experiments.run.logs import MetricsLog
from experiments.run.steps import encoded

# The weights of a bag that is joined to vectors.
BAG_WEIGHTS = (0.5, 2.0, 8.0)


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
  found = probe_candidates(
    encode_splits(settings, known.splits, models),
    known,
    bag=weighted_bags(data, known) if settings.with_bag else None,
    model=settings.probe_model,
    metric=settings.select_by,
    positive_weight=settings.positive_weight,
  )
  results = []
  with contextlib.closing(MetricsLog(folder, settings, resume_at=0)) as log:
    for number, result in enumerate(found, 1):
      named = {
        f'validation_{name}': value for name, value in result.values.items()
      }
      log.write(number, result.chosen | named)
      results.append(result)
  best = best_of(results)
  return {'best_step': 0} | best.chosen, best.outputs


def probe_rows(settings: FinetuneSettings, data: UserData) -> UserData:
  """The data with the rows that the flags select; refuses a single class."""
  known = examples_of(settings, data)
  if data.kind != 'ranking':
    check_classes(np.asarray(known.splits['train'].label), settings)
  return known


def probe_candidates(
  vectors: Mapping[str, np.ndarray],
  data: UserData,
  *,
  bag: BySplit | None = None,
  model: str = 'logistic',
  metric: str | None = None,
  positive_weight: float = 1.0,
) -> Iterator[ProbeResult]:
  """Fits the candidates of a probe, for labels or for a ranking.

  Args:
    vectors: of the users of each split, [users, features].
    bag: bags of the same users, which are `joined` to the vectors of a task
      with labels. The weight of the bag is `chosen`, too.
    model: as in `classifiers.candidates`, like the remaining arguments.
  """
  if data.kind == 'ranking':
    yield from ranking_candidates(vectors, data, metric)
    return
  fitted = functools.partial(
    candidates,
    data=data,
    model=model,
    metric=metric,
    positive_weight=positive_weight,
  )
  if bag is None:
    yield from fitted(vectors)
    return
  # Trees depend only on the order of the values of a feature.
  for weight in BAG_WEIGHTS if model == 'logistic' else (1.0,):
    for result in fitted(joined(vectors, bag, weight=weight)):
      yield result._replace(chosen={'bag_weight': weight} | result.chosen)


def history_numbers(data: UserData) -> np.ndarray:
  """The number of each stored history, [histories], split after split.

  It is the number of the row; in a ranking, where a user may be in several
  splits, it is the number of the user.
  """
  parts = data.splits.values()
  if data.kind == 'ranking':
    return np.concatenate([part.user_number for part in parts])
  return np.arange(sum(len(part.items) for part in parts))


def distinct_users(data: UserData) -> tuple[UserArrays, dict[str, np.ndarray]]:
  """The users of all splits, each once, without labels and targets.

  A user of a ranking may be in several splits, with the same history.

  Returns:
    The users, in the order of `history_numbers`; and for each split, the place
    of each of its users among them.
  """
  _, first, place = np.unique(
    history_numbers(data), return_index=True, return_inverse=True
  )
  parts = data.splits.values()
  columns = [part.user_id for part in parts], [part.items for part in parts]
  users = [Ragged.concatenate(column).take(first) for column in columns]
  ends = np.cumsum([len(part.items) for part in parts])
  places = np.split(place, ends[:-1])
  return UserArrays(*users), dict(zip(data.splits, places, strict=True))


def probe_head(
  settings: FinetuneSettings, data: UserData, model: Model
) -> dict[str, Any]:
  """The parameters of a linear head that is equivalent to the best probe."""
  known = probe_rows(settings, data)
  vectors = encode_splits(settings, known.splits, [model])
  best = best_of(
    candidates(
      vectors,
      known,
      metric=settings.select_by,
      positive_weight=settings.positive_weight,
    )
  )
  kernel, bias = linear_head(
    best, vectors['train'], len(data.vocabulary.labels)
  )
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
  settings: UserVectorSettings,
  splits: Mapping[str, UserArrays],
  models: Sequence[Model],
) -> dict[str, np.ndarray]:
  """The vectors of the users of each split, [users, features].

  Args:
    models: the encoders, whose vectors are concatenated.

  Raises:
    SettingsError: a vector has nan or infinity, which happens if the training
      of the encoder diverged.
  """
  users = [UserArrays(part.user_id, part.items) for part in splits.values()]
  parts = []
  for model in models:
    found = encoded(settings, users, *model, history=settings.history)
    vectors = np.concatenate([some for *_, some in found])
    if not np.isfinite(vectors).all():
      raise SettingsError(
        'the encoder gives vectors with nan or infinity, on which no probe can '
        'be fitted: take an encoder whose training did not diverge'
      )
    parts.append(vectors)
  ends = np.cumsum([len(part.items) for part in users])
  found = np.split(np.concatenate(parts, axis=1), ends[:-1])
  return dict(zip(splits, found, strict=True))


def probe_name(result: dict[str, Any]) -> str:
  """The settings that validation chose, in words.

  Example:
    >>> probe_name({'bag_weight': 0.5, 'C': 0.01})
    'a probe with bag_weight 0.5, C 0.01'
  """
  known = ('bag_weight', 'C', 'trees', 'ridge')
  names = [name for name in known if name in result]
  return 'a probe with ' + ', '.join(f'{x} {result[x]:g}' for x in names)


def bags_by_split(data: UserData, *, max_length: int = 0) -> BySplit:
  """The bags of the users of each split.

  Args:
    max_length: the number of last behaviours that are used; 0: all.
  """
  num_items = len(data.vocabulary.items)
  return {
    name: bags(part.items, num_items, max_length=max_length)
    for name, part in data.splits.items()
  }


def weighted_bags(
  data: UserData, known: UserData, *, max_length: int = 0
) -> BySplit:
  """The bags of the users of a task with labels, weighted by `tf_idf`.

  Args:
    data: the task. Document frequencies are counted over all of its users,
      trained on or not.
    known: the same, with only the training rows that are used.
  """
  from scipy import sparse

  bag = bags_by_split(data, max_length=max_length)
  everybody = sparse.vstack(list(bag.values()), format='csr')
  return {
    name: tf_idf(bag[name][: len(part.items)], counted=everybody)
    for name, part in known.splits.items()
  }
