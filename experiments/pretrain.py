"""Pre-trains a user model on behaviours alone.

  python -m experiments.pretrain --flagfile=experiments/configs/quickstart.flags

Started again with the same flags, it goes on where it stopped.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax import numpy as jnp

from adaptssr_jax import augment
from adaptssr_jax.checkpoint import describe
from adaptssr_jax.data import UserArrays
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.objectives.adaptssr import adaptssr_objective
from adaptssr_jax.train import (
  AXIS,
  LossFn,
  TrainState,
  pmap_step,
  sum_metrics,
  train_step,
)
from experiments import loop
from experiments.datasets import open_data
from experiments.encoders import make_encoder
from experiments.settings import SettingsError, flag, run
from experiments.shared_settings import EncoderSettings, RunSettings
from experiments.workdir import open_workdir, write_dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings, EncoderSettings):
  """The flags of pre-training."""

  objective: str = flag(
    'adaptssr', 'What is learned from.', choices=('adaptssr',)
  )
  init_from: str = flag(
    '', 'Workdir of a run whose encoder to start from; else at random.'
  )
  augmentations: tuple[str, ...] = flag(
    ('crop', 'mask', 'reorder'),
    'Explicit augmentations, one drawn per view.',
    choices=('crop', 'mask', 'reorder'),
  )
  crop_ratio: float = flag(
    0.4, 'Share of the behaviours that crop keeps.', above=0.0, high=1.0
  )
  mask_ratio: float = flag(
    0.6, 'Share of the behaviours that mask hides.', above=0.0, high=1.0
  )
  reorder_ratio: float = flag(
    0.6, 'Share of the behaviours that reorder shuffles.', above=0.0, high=1.0
  )
  fusion: str = flag(
    'adaptive',
    'Lambda: adaptive (one per user), batch_mean, or a number in [0, 1].',
  )
  hard_negatives: bool = flag(
    True, 'Rank the hardest pairs of a batch, rather than all.'
  )


def main(settings: PretrainSettings) -> TrainState:
  """Pre-trains, and returns the last state."""
  loop.check_devices(settings)
  folder = open_workdir(settings)
  data = open_data(settings, task='pretrain')
  items = data.vocabulary.items
  write_dataset(folder, data)

  init_key, train_key, eval_key = jax.random.split(
    jax.random.key(settings.seed), 3
  )
  encoder, params = make_encoder(
    settings, items, init_key, source=settings.init_from
  )
  loss_fn = make_loss(settings, encoder)
  optimizer = loop.make_optimizer(settings)
  state = loop.train(
    loop.Run(
      settings=settings,
      folder=folder,
      users=data.splits['train'],
      length=encoder.max_length,
      step=functools.partial(
        train_step,
        loss_fn=loss_fn,
        optimizer=optimizer,
        key=train_key,
        axis_name=AXIS,
      ),
      description=describe(encoder, items, settings.flag_values()),
      on_epoch=functools.partial(
        validate,
        users=data.splits['validation'],
        length=encoder.max_length,
        settings=settings,
        step=pmap_step(
          functools.partial(validation_step, loss_fn=loss_fn, key=eval_key)
        ),
      ),
    ),
    {'encoder': params},
    optimizer,
  )
  print(f'pre-trained: {folder}', flush=True)
  return state


def make_loss(settings: PretrainSettings, encoder: UserEncoder) -> LossFn:
  """The objective of the flags, as (params, batch, key) -> loss, metrics."""
  choices = {
    'crop': functools.partial(augment.crop, ratio=settings.crop_ratio),
    'mask': functools.partial(
      augment.mask, ratio=settings.mask_ratio, mask_id=encoder.mask_id
    ),
    'reorder': functools.partial(augment.reorder, ratio=settings.reorder_ratio),
  }
  return functools.partial(
    adaptssr_objective,
    encoder=encoder,
    augmentation=augment.one_of(
      *[choices[name] for name in settings.augmentations]
    ),
    fusion=parse_fusion(settings.fusion),
    hard_negatives=settings.hard_negatives,
    axis_name=AXIS,
  )


def parse_fusion(text: str) -> str | float:
  """The value of `--fusion`: a word, or a number in [0, 1]."""
  if text in ('adaptive', 'batch_mean'):
    return text
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise SettingsError(
      f'--fusion must be adaptive, batch_mean or a number in [0, 1], not {text}'
    )
  return value


def validation_step(
  params: dict, batch: dict, *, loss_fn: LossFn, key: jax.Array
) -> dict:
  """The sums of the metrics of a batch; the same draws every time."""
  _, metrics = loss_fn(params, batch, key)
  return sum_metrics(metrics, axis_name=AXIS)


def validate(
  state: TrainState,
  *,
  users: UserArrays,
  length: int,
  settings: PretrainSettings,
  step: Callable,
) -> tuple[dict[str, float], None]:
  """The metrics on the validation users, who are ranked within their batch."""
  totals = None
  for batch in loop.batches_in_order(users, settings, length):
    sums = step(state.params, batch)
    totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
  return {
    f'validation_{name}': float(total / count)
    for name, (total, count) in totals.items()
  }, None


if __name__ == '__main__':
  run(main, PretrainSettings)
