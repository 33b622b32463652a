"""The kinds of tasks: their objectives, predictions, metrics and models."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptssr_jax import metrics
from adaptssr_jax.checkpoint.encoders import restore_description
from adaptssr_jax.data import UserData
from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.encoder.transfer import (
  TiedTargets,
  biases_of_targets,
  item_ids,
)
from adaptssr_jax.objectives.classification import (
  class_logits,
  classification_objective,
  conversion_objective,
  conversion_scores,
)
from adaptssr_jax.objectives.ranking import (
  ranking_objective,
  ranks_of_positives,
)
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.devices import AXIS
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import CUTOFFS, SELECT_BY, FinetuneSettings
from experiments.run.encoder import Source, make_encoder, open_source
from experiments.run.process import print_line


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of task."""

  # (params, batch, key, *, encoding, head) -> loss and metrics.
  objective: Callable
  # (params, batch, *, encoding, head) -> the output for each user.
  predict: Callable
  # (outputs, labels) of all rows of a split -> its metrics.
  measure: Callable[[np.ndarray, np.ndarray | None], dict[str, float]]
  # (outputs, labels) -> the columns of `predictions.npz`.
  columns: Callable[[np.ndarray, np.ndarray | None], dict[str, np.ndarray]]


def measure_classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Accuracy and macro-F1 of logits [rows, classes]; AUC for two classes."""
  num_classes = logits.shape[1]
  values = {
    'accuracy': metrics.accuracy(logits, labels).mean(),
    'macro_f1': metrics.macro_f1(
      logits.argmax(axis=1), labels, num_classes=num_classes
    ),
  }
  if num_classes == 2:
    values |= _auc(logits[:, 1] - logits[:, 0], labels)
  return {name: float(value) for name, value in values.items()}


def measure_conversion(
  scores: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
  """AUC, log loss, and the rate of events: predicted and observed."""
  values = _auc(scores, labels) | {
    'log_loss': optax.sigmoid_binary_cross_entropy(scores, labels).mean(),
    'predicted_rate': jax.nn.sigmoid(scores).mean(),
    'rate': labels.mean(),
  }
  return {name: float(value) for name, value in values.items()}


def measure_ranks(ranks: np.ndarray, labels: None = None) -> dict[str, float]:
  """Hit rate, MRR and NDCG at each of the cutoffs."""
  del labels  # The ranks are those of the positives.
  functions = {
    'hit_rate': metrics.hit_rate,
    'mrr': metrics.reciprocal_rank,
    'ndcg': metrics.ndcg,
  }
  return {
    f'{name}@{k}': float(function(ranks, k=k).mean())
    for k in CUTOFFS
    for name, function in functions.items()
  }


def _auc(scores: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
  # The AUC is not defined if all users of a split are of one class.
  if len(np.unique(labels)) < 2:
    return {}
  return {'auc': metrics.roc_auc(scores, labels)}


KINDS = {
  'classification': Kind(
    objective=classification_objective,
    predict=class_logits,
    measure=measure_classes,
    columns=lambda logits, labels: {
      'label': labels,
      'logits': logits,
      'correct': np.asarray(metrics.accuracy(logits, labels)),
    },
  ),
  'conversion': Kind(
    objective=conversion_objective,
    predict=conversion_scores,
    measure=measure_conversion,
    columns=lambda scores, labels: {'label': labels, 'score': scores},
  ),
  'ranking': Kind(
    objective=ranking_objective,
    predict=ranks_of_positives,
    measure=measure_ranks,
    columns=lambda ranks, labels: {'rank': ranks},
  ),
}


def select_by(settings: FinetuneSettings, data: UserData) -> str:
  """The metric on validation rows that chooses the best epoch."""
  return settings.select_by or SELECT_BY[data.kind][0]


def as_score(values: dict[str, float], metric: str) -> float:
  """The metric with its sign chosen so that larger is better."""
  return -values[metric] if metric == 'log_loss' else values[metric]


def make_model(
  settings: FinetuneSettings, data: UserData, key: jax.Array
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The encoder and its head by name; and the parameters of the model."""
  items, labels = data.vocabulary
  shard_table = settings.shard_table
  encoder_key, head_key = jax.random.split(key)
  source = open_source(settings.pretrained, shard_table=shard_table)
  encoder, params = make_encoder(
    settings, items, encoder_key, source=source, shard_table=shard_table
  )
  if settings.tied_targets:
    head, head_params = make_tied_targets(
      settings, data, encoder, head_key, source=source
    )
  else:
    head = TaskHead(
      num_outputs=1 if data.kind == 'conversion' else len(labels),
      hidden_dim=64 if settings.head == 'mlp' else 0,
    )
    user = jnp.zeros((1, encoder.vector_dim))
    head_params = head.init(head_key, user)['params']
  return {'encoder': encoder, 'head': head}, params | {'head': head_params}


def with_buckets(
  function: Callable, model: dict[str, Any], buckets: Buckets
) -> Callable:
  """An objective or a prediction of a `Kind`, with the model bound to it."""
  encoding = Encoding(model['encoder'], buckets, axis_name=AXIS)
  return functools.partial(function, encoding=encoding, head=model['head'])


def make_tied_targets(
  settings: FinetuneSettings,
  data: UserData,
  encoder: UserEncoder,
  key: jax.Array,
  *,
  source: Source | None,
) -> tuple[TiedTargets, dict[str, Any]]:
  """The head and its parameters; prints how many targets are items."""
  items, targets = data.vocabulary
  head = TiedTargets(item_ids(targets, items))
  print_line(
    f'{np.count_nonzero(head.items):,} of {len(targets):,} targets are items; '
    'the others have rows of their own'
  )
  learned = _pretrained_head(settings, targets, source)
  width = (encoder.vector_dim, encoder.embed_dim)
  if np.shape(learned.get('projection')) != width:
    # The projection was learned for vectors of another width.
    learned.pop('projection', None)
  params = head.init(
    key,
    features=encoder.vector_dim,
    embed_dim=encoder.embed_dim,
    **learned,
  )
  return head, params


def _pretrained_head(
  settings: FinetuneSettings, targets: list[str], source: Source | None
) -> dict[str, np.ndarray]:
  """The parameters by which the pre-trained model scores items, if any."""
  if source is None:
    return {}
  head = source.params.get('head', {})
  learned = {
    name: np.asarray(head[name])
    for name in ('bias', 'projection')
    if name in head
  }
  flags = restore_description(settings.pretrained).flags
  trained = set(str(flags.get('objective', '')).split(','))
  # Masked items do not train the user vector.
  scores_users = trained & {'causal_items', 'pooled_items', 'next_items'}
  if settings.mode == 'zero_shot' and not scores_users:
    raise SettingsError(
      f'--mode=zero_shot: {settings.pretrained} has not learned to score items '
      'from the user vector; take a run of --objective=causal_items or '
      'pooled_items, or fine-tune it with --tied_targets'
    )
  if np.shape(learned.get('bias')) == (source.encoder.mask_id,):
    bias = biases_of_targets(learned['bias'], targets, source.vocabulary)
    return learned | {'bias': bias}
  return {}
