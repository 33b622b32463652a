"""The training step of fine-tuning."""

import functools
from typing import Any

import jax
import optax

from adaptssr_jax.data import UserData
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.ranking import softmax_ranking_objective
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.step import LossFn, TrainState
from experiments.finetuning.data import examples_of
from experiments.finetuning.tasks import KINDS, with_buckets
from experiments.flags.binder import SettingsError
from experiments.flags.finetuning import FinetuneSettings
from experiments.run import loop
from experiments.run.batches import Batches
from experiments.run.steps import Training, make_step, sequences_of


def make_finetuning(
  settings: FinetuneSettings,
  data: UserData,
  model: dict[str, Any],
  params: dict[str, Any],
) -> tuple[Training, TrainState]:
  """The batches and the step of a run, and its initial state."""
  encoder, splits = model['encoder'], examples_of(settings, data).splits
  sequences = sequences_of(settings, splits.values(), encoder.max_length)
  length = sequences.length
  batches = Batches(
    splits['train'],
    settings.batch_size,
    length,
    settings.seed,
    settings.window,
  )
  num_steps = settings.total_steps(batches.steps_per_epoch)
  head_steps = settings.head_epochs * batches.steps_per_epoch
  if head_steps >= num_steps:
    raise SettingsError(
      f'--head_epochs={settings.head_epochs} leaves none of the {num_steps} '
      'steps for the encoder: take fewer, or a longer run'
    )
  step, state = make_step(
    settings,
    encoder,
    params,
    training_loss(settings, data, model, sequences.buckets),
    make_optimizer(
      settings,
      encoder,
      num_steps=num_steps,
      head_steps=head_steps,
    ),
    ids_per_user=length,
    table_rate=layer_rates(settings, encoder)['table'],
  )
  return Training(encoder, splits, batches, num_steps, sequences, step), state


def training_loss(
  settings: FinetuneSettings,
  data: UserData,
  model: dict[str, Any],
  buckets: Buckets,
) -> LossFn:
  """The objective of the task, with the settings bound."""
  objective = KINDS[data.kind].objective
  if data.kind == 'ranking' and settings.ranking_loss == 'softmax':
    objective = softmax_ranking_objective
  loss_fn = with_buckets(objective, model, buckets)
  if data.kind == 'conversion':
    loss_fn = functools.partial(
      loss_fn, positive_weight=settings.positive_weight
    )
  if settings.mode == 'frozen':
    loss_fn = functools.partial(frozen_loss, loss_fn=loss_fn)
  return loss_fn


def frozen_loss(
  params: dict[str, Any],
  batch: dict[str, Any],
  key: jax.Array,
  *,
  loss_fn: LossFn,
) -> tuple[jax.Array, dict[str, Any]]:
  """A loss without gradients of the encoder and the item table."""
  head = params['head']
  return loss_fn(jax.lax.stop_gradient(params) | {'head': head}, batch, key)


def make_optimizer(
  settings: FinetuneSettings,
  encoder: UserEncoder,
  *,
  num_steps: int,
  head_steps: int = 0,
) -> optax.GradientTransformation:
  """The optimizer that the flags define, with a learning rate for each layer.

  Args:
    num_steps: the number of updates of the run.
    head_steps: the number of first updates, which train only the head.
  """
  rate = loop.learning_rate(settings, num_steps)
  optimizer = loop.make_optimizer(settings, rate)
  if settings.mode == 'frozen':
    # Weight decay would change even parameters without a gradient.
    return optax.multi_transform(
      {'trained': optimizer, 'frozen': optax.set_to_zero()},
      {'table': 'frozen', 'encoder': 'frozen', 'head': 'trained'},
    )
  rates = layer_rates(settings, encoder)
  if set(rates.values()) == {settings.learning_rate} and not head_steps:
    return optimizer
  optimizers = {}
  for part, rate in rates.items():
    # The warm-up of the encoder starts after the steps of the head alone.
    rate = loop.learning_rate(settings, num_steps - head_steps, rate=rate)
    if head_steps:
      later = rate if callable(rate) else optax.constant_schedule(rate)
      never = optax.constant_schedule(0.0)
      rate = optax.join_schedules([never, later], [head_steps])
    optimizers[part] = loop.make_optimizer(settings, rate)
  # `part_names` is a function: the parameters have no table if its rows have
  # an optimizer of their own.
  return optax.multi_transform(optimizers | {'head': optimizer}, part_names)


def layer_rates(
  settings: FinetuneSettings, encoder: UserEncoder
) -> dict[str, float]:
  """The learning rate of each part of the encoder.

  With r = --encoder_learning_rate and d = --layer_decay: r for the pooling,
  r d^(L - b) for block b of L, counted from 0, and r d^(L + 1) for the
  embeddings.
  """
  rate = settings.encoder_learning_rate or settings.learning_rate
  layers = encoder.num_layers
  depths = {'pooling': 0}
  depths |= {f'blocks_{b}': layers - b for b in range(layers)}
  embeddings = ('norm', 'position_embedding', 'table')
  depths |= dict.fromkeys(embeddings, layers + 1)
  return {
    part: rate * settings.layer_decay**depth for part, depth in depths.items()
  }


def part_names(params: dict[str, Any]) -> dict[str, Any]:
  """The label of each parameter: a layer of the encoder, or the head.

  Example:
    >>> part_names({'encoder': {'norm': {'scale': 1}}, 'head': {'output': 2}})
    {'encoder': {'norm': 'norm'}, 'head': 'head'}
  """
  encoder = {part: part for part in params['encoder']}
  return {part: part for part in params} | {'encoder': encoder}
