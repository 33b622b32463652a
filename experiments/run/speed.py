"""How the work of a run is done: the parts of a batch, and its step."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.prepared.batches import users_per_device
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import encode_users
from adaptssr_jax.ops.buckets import Buckets, bucket_widths
from adaptssr_jax.table.row_adam import row_adam
from adaptssr_jax.table.shards import on_rows, take_table, with_table
from adaptssr_jax.training.devices import AXIS, is_shards, replicate, shard
from adaptssr_jax.training.row_step import (
  init_row_state,
  row_train_step,
  shard_row_train_step,
)
from adaptssr_jax.training.step import (
  LossFn,
  PmapStep,
  TrainState,
  init_state,
  pmap_step,
  train_step,
)
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import OVER_ALL_ITEMS
from experiments.flags.speed import (
  EncodingSettings,
  SpeedSettings,
  TableSettings,
)

# What sequences are encoded at once. On a CPU few, since what is written for 16
# of them is still near when it is read.
_MICROBATCH = {'cpu': 16}
_MICROBATCH_ELSEWHERE = 256
_SAMPLE = 1_000_000
# With fewer items than so many times the rows of a batch, all of the table is
# updated in less time.
_ROWS_PAY_FROM = 3


def effective_length(splits: Iterable[UserArrays], max_length: int) -> int:
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
  table_rate: float | None = None,
) -> tuple[Callable, TrainState]:
  """The step of a run, before `pmap_step`, and the state it begins with.

  Args:
    settings: the flags of the run.
    encoder: that is trained.
    params: of the whole model.
    make_loss: gives the loss of an encoder, which may have fewer items.
    optimizer: of all parameters.
    length: of the sequences of a batch.
    table_rate: the learning rate of the item table [--learning_rate].

  Raises:
    SettingsError: --table_update=rows does not go with the other flags.
  """
  size = min(settings.batch_size * length, encoder.num_items) + 2
  params = with_split_table(settings, params)
  if not _update_rows(settings, encoder, size):
    step = functools.partial(
      train_step,
      loss_fn=on_table(settings, make_loss, encoder, length=length),
      optimizer=optimizer,
      axis_name=AXIS,
    )
    return step, init_state(params, optimizer)
  table_optimizer = row_adam(table_rate or settings.learning_rate)
  state = init_row_state(params, optimizer, table_optimizer)
  step = row_train_step
  if settings.shard_table:
    size = _rows_of_a_device(settings, encoder, length)
    step = functools.partial(shard_row_train_step, mask_id=encoder.mask_id)
  step = functools.partial(
    step,
    loss_fn=make_loss(encoder.clone(num_items=size - 2)),
    optimizer=optimizer,
    table_optimizer=table_optimizer,
    size=size,
    axis_name=AXIS,
  )
  return step, state


def with_split_table(
  settings: TableSettings, params: dict[str, Any]
) -> dict[str, Any]:
  """The parameters, the item table split over the devices if it is to be."""
  table, others = take_table(params)
  if not settings.shard_table or is_shards(table):
    return params
  return with_table(others, shard(table))


def on_table(
  settings: TableSettings,
  make: Callable[[UserEncoder], Callable],
  encoder: UserEncoder,
  *,
  length: int,
) -> Callable:
  """A function of (params, batch, ...), whether or not the table is split.

  Args:
    settings: the flags of the run.
    make: gives the function for an encoder, which may have fewer items.
    encoder: of the whole table.
    length: of the sequences of a batch.
  """
  if not settings.shard_table:
    return make(encoder)
  size = _rows_of_a_device(settings, encoder, length)
  return on_rows(
    make(encoder.clone(num_items=size - 2)),
    mask_id=encoder.mask_id,
    size=size,
    axis_name=AXIS,
  )


def make_encoding(
  settings: TableSettings,
  encoder: UserEncoder,
  params: dict[str, Any],
  *,
  buckets: Buckets,
  length: int,
) -> tuple[PmapStep, dict[str, Any]]:
  """(params, batch) -> the vectors of all its users; the params, on devices.

  Args:
    settings: the flags.
    encoder: gives the vectors, without dropout.
    params: of the encoder.
    buckets: in which parts the users are encoded.
    length: of the sequences of a batch.
  """
  step = pmap_step(
    encoding_step(settings, encoder, buckets=buckets, length=length)
  )
  return step, replicate(with_split_table(settings, {'encoder': params}))


def encoding_step(
  settings: TableSettings,
  encoder: UserEncoder,
  *,
  buckets: Buckets,
  length: int,
) -> Callable:
  """The step of `make_encoding`, before `pmap_step`."""
  make = functools.partial(_encoding, buckets)
  return on_table(settings, make, encoder, length=length)


def _encoding(buckets: Buckets, encoder: UserEncoder) -> Callable:
  return functools.partial(
    encode_users, encoder=encoder, buckets=buckets, axis_name=AXIS
  )


def _rows_of_a_device(
  settings: TableSettings, encoder: UserEncoder, length: int
) -> int:
  """How many rows of the table a device's part of a batch needs at most."""
  users = users_per_device(settings.batch_size, jax.device_count())
  return min(users * length, encoder.num_items) + 2


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
  for name in getattr(settings, 'objective', ()):
    if name in OVER_ALL_ITEMS:
      return f'--objective={name}'
  if getattr(settings, 'tied_targets', False):
    return '--tied_targets'
  if getattr(settings, 'mode', 'full') != 'full':
    return f'--mode={settings.mode}'
  if getattr(settings, 'head_epochs', 0):
    return f'--head_epochs={settings.head_epochs}'
  return ''


def _update_rows(
  settings: SpeedSettings, encoder: UserEncoder, size: int
) -> bool:
  check_table_update(settings)
  if settings.table_update == 'auto':
    few = encoder.num_items <= _ROWS_PAY_FROM * size
    return not (few or _whole_table(settings))
  return settings.table_update == 'rows'
