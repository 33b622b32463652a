"""Makes the steps of a run: those that train, and those that encode users."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.prepared.batches import users_per_device
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.ops.buckets import Buckets, bucket_widths
from adaptssr_jax.table.lookup import with_batch_rows
from adaptssr_jax.table.row_adam import row_adam
from adaptssr_jax.table.shards import is_shards
from adaptssr_jax.table.softmax import sample_items
from adaptssr_jax.training.devices import AXIS, replicate, shard
from adaptssr_jax.training.row_step import init_row_state, row_train_step
from adaptssr_jax.training.step import (
  LossFn,
  PmapStep,
  PrepareFn,
  TrainState,
  init_state,
  pmap_step,
  train_step,
)
from experiments.flags.process import (
  EncodingSettings,
  SpeedSettings,
  TableSettings,
  whole_table_flag,
)
from experiments.run.batches import Batches, outputs_in_order

# Sequences encoded at once. On a CPU, the activations of 16 fit the cache.
_MICROBATCH_ON_CPU, _MICROBATCH_ELSEWHERE = 16, 256
_SAMPLE = 1_000_000
# Updating the whole table is faster if it has at most this many items for each
# row of a batch.
_MIN_ITEMS_PER_ROW = 3


class Sequences(NamedTuple):
  """The sequences that a step encodes."""

  length: int  # to which they are padded, unless a bucket is shorter
  lengths: np.ndarray  # of a sample of them, without padding, int [sequences]
  buckets: Buckets  # chosen for these lengths
  per_user: int = 1  # sequences for each user of a batch


class Training(NamedTuple):
  """All that the loop and `--plan` need to know of a model and its data."""

  encoder: UserEncoder
  splits: Mapping[str, UserArrays]  # as batches hold them
  batches: Batches  # of the split that is trained on
  num_steps: int  # updates of the run
  sequences: Sequences
  # (state, batch, key) -> (state, metrics), before `pmap_step`.
  step: Callable[[TrainState, dict, jax.Array], tuple[TrainState, dict]]


def effective_length(splits: Iterable[UserArrays], max_length: int) -> int:
  """The length of sequences in batches: at most that of the longest history."""
  longest = max(users.items.longest for users in splits)
  return max(min(longest, max_length), 1)


def sample_lengths(users: UserArrays, length: int) -> np.ndarray:
  """The lengths of a sample of a million users, or of all, cut to `length`."""
  count = len(users.items)
  rows = np.arange(0, count, max(count // _SAMPLE, 1))
  return np.minimum(users.items.lengths_of(rows), length)


def make_buckets(settings: EncodingSettings, lengths: np.ndarray) -> Buckets:
  """The buckets in which the sequences of a batch are encoded."""
  size = settings.microbatch
  if size is None:
    on_cpu = jax.default_backend() == 'cpu'
    size = _MICROBATCH_ON_CPU if on_cpu else _MICROBATCH_ELSEWHERE
  widths = bucket_widths(
    lengths, programs=settings.buckets, max_length=max(int(lengths.max()), 1)
  )
  return Buckets(widths if settings.buckets > 1 else (), size or None)


def sequences_of(
  settings: EncodingSettings, splits: Collection[UserArrays], max_length: int
) -> Sequences:
  """The last behaviours of the users of some splits, one sequence a user."""
  length = effective_length(splits, max_length)
  lengths = np.concatenate([sample_lengths(users, length) for users in splits])
  return Sequences(length, lengths, make_buckets(settings, lengths))


def make_step(
  settings: SpeedSettings,
  encoder: UserEncoder,
  params: dict[str, Any],
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  ids_per_user: int,
  table_rate: float | None = None,
  sampled_items: int = 0,
  draw: PrepareFn | None = None,
) -> tuple[Callable, TrainState]:
  """Makes the step of a run, without `pmap_step`, and its initial state.

  Args:
    ids_per_user: the most item ids that a user adds to a batch.
    table_rate: learning rate of the item table [--learning_rate].
    sampled_items: number of items from which a step estimates softmaxes; 0:
      softmaxes are exact.
    draw: (batch, key of the step) -> batch with items drawn for each user.
  """
  params = with_sharded_table(params, shard_table=settings.shard_table)
  users = settings.batch_size
  if settings.shard_table:
    users = users_per_device(users, jax.device_count())
  shared = {
    'optimizer': optimizer,
    'axis_name': AXIS,
    'prepare': _preparing(encoder, sampled_items, draw),
  }
  updates_rows = settings.table_update == 'rows'
  if settings.table_update == 'auto':
    # Those of padding and of the mask are always among them.
    rows = users * ids_per_user + sampled_items + 2
    few = encoder.num_items <= _MIN_ITEMS_PER_ROW * rows
    updates_rows = not (few or whole_table_flag(settings))
  if not updates_rows:
    loss_fn = on_table(loss_fn, encoder)
    step = functools.partial(train_step, loss_fn=loss_fn, **shared)
    return step, init_state(params, optimizer)
  table_optimizer = row_adam(table_rate or settings.learning_rate)
  step = functools.partial(
    row_train_step,
    loss_fn=loss_fn,
    table_optimizer=table_optimizer,
    mask_id=encoder.mask_id,
    **shared,
  )
  return step, init_row_state(params, optimizer, table_optimizer)


def _preparing(
  encoder: UserEncoder, sampled_items: int, draw: PrepareFn | None
) -> PrepareFn | None:
  """The function that adds the drawn items of a step to its batch."""
  if not sampled_items:
    return draw
  sample = functools.partial(
    sample_items, num_sampled=sampled_items, num_ids=encoder.mask_id
  )

  def draw_both(batch: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    return sample(draw(batch, key), key)

  return draw_both if draw else sample


def with_sharded_table(
  params: dict[str, Any], *, shard_table: bool
) -> dict[str, Any]:
  """The parameters, with a sharded item table if --shard_table is set."""
  table = params['table']
  if not shard_table or is_shards(table):
    return params
  return params | {'table': shard(table)}


def on_table(function: Callable, encoder: UserEncoder) -> Callable:
  """Makes a function that reads rows by `look_up` accept a sharded table."""
  return with_batch_rows(function, mask_id=encoder.mask_id, axis_name=AXIS)


def encoding_step(encoder: UserEncoder, buckets: Buckets) -> PmapStep:
  """Makes a step (params, batch) -> user vectors."""
  encoding = Encoding(encoder, buckets, axis_name=AXIS)
  return pmap_step(on_table(encoding.all_users, encoder))


def encoding_params(
  params: dict[str, Any], *, shard_table: bool
) -> dict[str, Any]:
  """The parameters that `encoding_step` needs, on the devices."""
  needed = {name: params[name] for name in ('table', 'encoder')}
  return replicate(with_sharded_table(needed, shard_table=shard_table))


def encoded(
  settings: TableSettings,
  splits: Collection[UserArrays],
  encoder: UserEncoder,
  params: dict[str, Any],
  *,
  history: str = 'last',
) -> Iterator[tuple[UserArrays, np.ndarray, np.ndarray]]:
  """Encodes the users of all splits, batch by batch, in the stored order.

  Args:
    history: 'last': the encoder reads the last behaviours of a history; or
      'whole': the history is split into windows that the encoder can read, and
      the vector is the mean over them, weighted by their lengths.

  Yields:
    The split; some rows of it; and their vectors, float32 [rows, features].
  """
  size, is_whole = settings.batch_size, history == 'whole'
  read, counts = splits, [None] * len(splits)
  if is_whole:
    found = [users.items.split(encoder.max_length) for users in splits]
    read = [UserArrays(None, windows) for windows, _ in found]
    counts = [count for _, count in found]
  sequences = sequences_of(settings, read, encoder.max_length)
  encode = encoding_step(encoder, sequences.buckets)
  params = encoding_params(params, shard_table=settings.shard_table)
  step = functools.partial(encode, params)
  for users, sequence, count in zip(splits, read, counts, strict=True):
    outputs = outputs_in_order(
      step, sequence, batch_size=size, length=sequences.length
    )
    if is_whole:
      lengths = sequence.items.lengths
      outputs = means_of_windows(outputs, lengths, count, batch_size=size)
    for rows, vectors in outputs:
      yield users, rows, vectors


def means_of_windows(
  outputs: Iterable[tuple[np.ndarray, np.ndarray]],
  lengths: np.ndarray,
  counts: np.ndarray,
  *,
  batch_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The mean vector over the windows of each user, weighted by their lengths.

  Args:
    outputs: the numbers and the vectors of windows, batch by batch, in order.
    lengths: of the windows, int [windows].
    counts: the number of windows of each user, from 1, int [users].

  Yields:
    The rows of the next `batch_size` users, and their vectors: the same users
    for every encoder, although their windows differ.
  """
  ends = np.cumsum(counts)
  begins = ends - counts
  # A user without behaviours has one window, of length 0.
  weights = np.maximum(lengths, 1).astype(np.float32)
  weights /= np.repeat(np.add.reduceat(weights, begins), counts)
  first, waiting = 0, []  # the first user not yet yielded, and its windows
  for rows, vectors in outputs:
    waiting.append(weights[rows, None] * vectors)
    last = int(np.searchsorted(ends, rows[-1] + 1, side='right'))
    while last - first >= batch_size or first < last == len(counts):
      stop = min(first + batch_size, last)
      known, size = np.concatenate(waiting), ends[stop - 1] - begins[first]
      at = begins[first:stop] - begins[first]
      yield np.arange(first, stop), np.add.reduceat(known[:size], at)
      first, waiting = stop, [known[size:]]
