"""The flags that change how fast a run is, and its results by rounding only."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax

from adaptssr_jax.buckets import Buckets, bucket_widths
from adaptssr_jax.data import UserArrays
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.optimizers import row_adam
from adaptssr_jax.train import (
  AXIS,
  LossFn,
  TrainState,
  init_row_state,
  init_state,
  row_train_step,
  train_step,
)
from experiments.settings import Settings, SettingsError, flag

# What sequences are encoded at once. On a CPU few, since what is written for 16
# of them is still near when it is read.
_MICROBATCH = {'cpu': 16}
_MICROBATCH_ELSEWHERE = 256
_SAMPLE = 1_000_000
# With fewer items than so many times the rows of a batch, all of the table is
# updated in less time.
_ROWS_PAY_FROM = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingSettings(Settings):
  """In which parts sequences are encoded."""

  buckets: int = flag(
    4,
    'Lengths to which sequences may be cut, which the data choose; each is '
    'compiled. 1: all are encoded at full length.',
    low=1,
    same_run=False,
  )
  microbatch: int | None = flag(
    None,
    'Sequences that a device encodes at once, keeping nothing for the gradient '
    'but their vectors; 0: all of them [16 on a CPU, else 256].',
    low=0,
    same_run=False,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedSettings(EncodingSettings):
  """How the work of a training step is done."""

  table_update: str = flag(
    'auto',
    'What Adam updates of the item table in a step: all of it (dense), the '
    'rows of the batch, to the same effect (rows), or what is faster (auto).',
    choices=('auto', 'dense', 'rows'),
  )


def length_seen(splits: Iterable[UserArrays], max_length: int) -> int:
  """The behaviours of a user that batches hold: no more than any user has."""
  longest = max(users.items.longest for users in splits)
  return max(min(longest, max_length), 1)


def sample_lengths(users: UserArrays, length: int) -> np.ndarray:
  """How many behaviours are seen of users, of a million of them at most."""
  count = len(users.items)
  rows = np.arange(0, count, max(count // _SAMPLE, 1))
  return np.minimum(users.items.lengths_of(rows), length)


def make_buckets(settings: EncodingSettings, lengths: np.ndarray) -> Buckets:
  """In which parts the sequences of a batch are encoded.

  Args:
    settings: the flags.
    lengths: of sequences as they will be encoded, or of a sample.
  """
  size = settings.microbatch
  if size is None:
    size = _MICROBATCH.get(jax.default_backend(), _MICROBATCH_ELSEWHERE)
  widths = bucket_widths(
    lengths, programs=settings.buckets, max_length=max(int(lengths.max()), 1)
  )
  return Buckets(widths if settings.buckets > 1 else (), size or None)


def make_training(
  settings: SpeedSettings,
  encoder: UserEncoder,
  params: dict[str, Any],
  make_loss: Callable[[UserEncoder], LossFn],
  optimizer: optax.GradientTransformation,
  *,
  length: int,
) -> tuple[Callable, TrainState]:
  """The step of a run, before `pmap_step`, and the state it begins with.

  Args:
    settings: the flags of the run.
    encoder: that is trained.
    params: of the whole model.
    make_loss: gives the loss of an encoder, which may have fewer items.
    optimizer: of all parameters.
    length: of the sequences of a batch.

  Raises:
    SettingsError: --table_update=rows does not go with the other flags.
  """
  size = settings.batch_size * length + 2
  if not _update_rows(settings, encoder, size):
    step = functools.partial(
      train_step,
      loss_fn=make_loss(encoder),
      optimizer=optimizer,
      axis_name=AXIS,
    )
    return step, init_state(params, optimizer)
  table_optimizer = row_adam(settings.learning_rate)
  step = functools.partial(
    row_train_step,
    loss_fn=make_loss(encoder.clone(num_items=size - 2)),
    optimizer=optimizer,
    table_optimizer=table_optimizer,
    size=size,
    axis_name=AXIS,
  )
  return step, init_row_state(params, optimizer, table_optimizer)


def check_table_update(settings: SpeedSettings) -> None:
  """Raises `SettingsError` where rows alone cannot be updated."""
  needs = _whole_table(settings)
  if settings.table_update == 'rows' and needs:
    raise SettingsError(
      f'--table_update=rows does not go with {needs}, which needs the whole '
      'table in every step, or none of it: take --table_update=auto'
    )


def _whole_table(settings: SpeedSettings) -> str:
  """The flag by which a step does not touch the rows of its batch alone."""
  if settings.weight_decay:
    return f'--weight_decay={settings.weight_decay:g}'
  if getattr(settings, 'objective', None) == 'masked_items':
    return '--objective=masked_items'
  if getattr(settings, 'mode', 'full') != 'full':
    return f'--mode={settings.mode}'
  return ''


def _update_rows(
  settings: SpeedSettings, encoder: UserEncoder, size: int
) -> bool:
  check_table_update(settings)
  if settings.table_update == 'auto':
    few = encoder.num_items <= _ROWS_PAY_FROM * size
    return not (few or _whole_table(settings))
  return settings.table_update == 'rows'
