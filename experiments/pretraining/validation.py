"""Validation of a pre-training run: metrics, probes, and signs of collapse.

The loss of a view ranking cannot be used to choose an epoch: it falls while the
vectors get worse. With --select_by=probe the epoch is chosen by a regression on
the user vectors, fitted on the training rows of a task and measured on its
validation rows. Its test rows are not used.

AdaptSSR fails in two ways. In the argument of the loss the similarity of the
explicit view has the coefficient 1 - 2 lambda. So explicit views with a cosine
above 0.5 are pulled together, and others are pushed apart. Therefore all users
can collapse to one point, or the views of a user can become as dissimilar as
different users. The value of the loss shows neither.
"""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adaptssr_jax import diagnostics
from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import Encoding, last_behaviours
from adaptssr_jax.training.devices import AXIS, replicate
from adaptssr_jax.training.step import (
  LossFn,
  PmapStep,
  TrainState,
  pmap_step,
)
from experiments.finetuning.predictions import predict_users
from experiments.flags.binder import SettingsError
from experiments.flags.pretraining import PretrainSettings
from experiments.flags.shared import RunSettings
from experiments.pretraining.context import Context
from experiments.pretraining.objectives import make_objective
from experiments.pretraining.step import make_drawing
from experiments.probing.classifiers import best_of
from experiments.probing.probe import probe_candidates
from experiments.run.batches import batches_in_order
from experiments.run.data import open_data, renumbered
from experiments.run.process import print_line
from experiments.run.steps import (
  Training,
  encoding_step,
  on_table,
  sequences_of,
)

# Runs that learn are far from these limits.
_LARGEST_MEAN_COSINE = 0.95
_LEAST_RANK = 3.0
_LEAST_MARGIN = 0.05

_SPREAD = {
  'mean_cosine': jax.jit(diagnostics.mean_cosine),
  'uniformity': jax.jit(diagnostics.uniformity),
  'effective_rank': jax.jit(diagnostics.effective_rank),
}
_LONGER = 'train longer, or with another --learning_rate'
_ADVICE = {
  ('adaptssr',): 'start from a run of --objective=pooled_items (--init_from), '
  'or lower --learning_rate'
}


def make_validation(
  settings: PretrainSettings,
  training: Training,
  *,
  items: Sequence[str],
  key: jax.Array,
) -> Callable[[TrainState], tuple[dict[str, float], float | None]]:
  """Returns `validate`, with all but the state bound.

  Args:
    items: the raw ids of the items, by which those of a probe are matched.
  """
  probes = settings.probe_task if settings.select_by == 'probe' else ()
  return functools.partial(
    validate,
    users=training.splits['validation'],
    batch_size=settings.batch_size,
    length=training.batches.length,
    objective=settings.objective,
    step=make_validation_step(settings, training),
    key=replicate(key),
    probes={
      task: open_probe(settings, training.encoder, items, task=task)
      for task in probes
    },
  )


def make_validation_step(
  settings: PretrainSettings, training: Training
) -> PmapStep:
  """Returns `validation_step` for all devices: (params, batch, key)."""
  encoder, batches = training.encoder, training.batches
  encoding = Encoding(
    encoder, training.sequences.buckets, deterministic=True, axis_name=AXIS
  )
  context = Context(settings, batches.users, encoding, training.num_steps)
  step = on_table(
    functools.partial(
      validation_step, loss_fn=make_objective(context), encoding=encoding
    ),
    encoder,
  )
  draw = make_drawing(context)

  def on_drawn(
    params: dict[str, Any], batch: dict[str, Any], key: jax.Array
  ) -> tuple[dict[str, Any], jax.Array]:
    return step(params, draw(batch, key), key)

  return pmap_step(on_drawn if draw else step, num_replicated_args=1)


def validation_step(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  loss_fn: LossFn,
  encoding: Encoding,
) -> tuple[dict[str, Any], jax.Array]:
  """The metrics of a batch as sums, and its user vectors without dropout."""
  _, metrics = loss_fn(params, batch, key)
  length = encoding.encoder.max_length
  items = last_behaviours(batch['items'], length=length)
  users = encoding.all_users(params, {'items': items})
  return jax.lax.psum(metrics, AXIS), users


def validate(
  state: TrainState,
  *,
  users: UserArrays,
  batch_size: int,
  length: int,
  objective: tuple[str, ...],
  step: Callable,
  key: jax.Array,
  probes: Mapping[str, Callable[[dict[str, Any]], float]],
) -> tuple[dict[str, float], float | None]:
  """The metrics on the validation users, and the score that selects an epoch.

  The random draws are the same at each call, and negatives of a user come from
  its validation batch. The score is the negative loss, or the mean score of the
  probes. It is None, with a warning, for a collapsed state, whose loss may be
  the lowest of all.
  """
  totals, vectors = None, []
  for batch, rows in batches_in_order(
    users, batch_size=batch_size, length=length
  ):
    sums, encoded = step(state.params, batch, key)
    sums = jax.device_get(sums)
    totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    vectors.append(np.asarray(encoded)[: len(rows)])
  values = {
    name: float(np.float32(total) / np.float32(max(count, 1)))
    for name, (total, count) in totals.items()
  }
  vectors = np.concatenate(vectors)
  values |= spread_of_users(vectors)
  selected_by = -values['loss']
  if probes:
    found = {task: score(state.params) for task, score in probes.items()}
    values |= {f'probe_{task}': value for task, value in found.items()}
    selected_by = values['probe'] = statistics.fmean(found.values())
  warning = collapse_warning(
    values, objective=objective, largest_rank=min(vectors.shape)
  )
  if warning:
    print_line(f'WARNING at step {int(state.step):,}: {warning}')
  named = {f'validation_{name}': value for name, value in values.items()}
  return named, None if warning else selected_by


def spread_of_users(users: np.ndarray) -> dict[str, float]:
  """How much user vectors [users, dim] differ: see `diagnostics`."""
  return {name: float(measure(users)) for name, measure in _SPREAD.items()}


def collapse_warning(
  values: dict[str, float],
  *,
  objective: tuple[str, ...],
  largest_rank: float = np.inf,
) -> str:
  """Describes a collapse of user vectors, if the metrics show one.

  Args:
    values: the result of `spread_of_users`; and, if the objective has them, the
      metrics `explicit` and `other`, the mean similarities of views of the same
      user and of different users.
    objective: the objectives of the run, on which the advice depends.
    largest_rank: the number of users or of features, whichever is smaller. An
      effective rank of half of it gives no warning.

  Returns:
    A sentence that says what to try, or an empty string.
  """
  advice = _ADVICE.get(objective, _LONGER)
  if values['mean_cosine'] > _LARGEST_MEAN_COSINE:
    return (
      'all users have nearly the same vector (mean cosine '
      f'{values["mean_cosine"]:.3f}): {advice}'
    )
  if values['effective_rank'] < min(_LEAST_RANK, largest_rank / 2):
    return (
      f'user vectors differ in {values["effective_rank"]:.1f} directions only: '
      f'{advice}'
    )
  margin = values.get('explicit', np.inf) - values.get('other', 0.0)
  if margin < _LEAST_MARGIN:
    return (
      'the views of a user are hardly more similar than different users '
      f'({values["explicit"]:.3f} against {values["other"]:.3f}): {advice}'
    )
  return ''


def open_probe(
  settings: RunSettings,
  encoder: UserEncoder,
  items: Sequence[str],
  *,
  task: str,
) -> Callable[[dict[str, Any]], float]:
  """Opens the task of a probe, and returns (params) -> `probe_score`."""
  data = open_data(settings, task)
  if data.kind == 'pretrain':
    raise SettingsError(
      f'--probe_task={task} has no labels and no targets: --select_by=probe '
      'needs some to predict'
    )
  validation = data.splits['validation']
  # A probe also predicts test rows. One row is enough, since it is not used.
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
  size = settings.batch_size
  sequences = sequences_of(settings, users.values(), encoder.max_length)
  return functools.partial(
    probe_score,
    users=users,
    data=data._replace(splits=scored),
    encode=functools.partial(
      predict_users,
      predict=encoding_step(encoder, sequences.buckets),
      batch_size=size,
      length=sequences.length,
    ),
  )


def probe_score(
  params: dict[str, Any],
  *,
  users: Mapping[str, UserArrays],
  data: UserData,
  encode: Callable[..., np.ndarray],
) -> float:
  """The validation score of the best probe.

  The score is the accuracy; for a conversion the AUC, for a ranking NDCG@10.

  Args:
    users: training, validation and test users, without labels.
    data: the same users, with labels or targets.
    encode: (params, *, users) -> user vectors, [users, features].
  """
  vectors = {name: encode(params, users=some) for name, some in users.items()}
  return best_of(probe_candidates(vectors, data)).score
