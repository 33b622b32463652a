"""Makes the model, the batches and the step of pre-training."""

import functools
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.data.prepared.batches import by_last_item
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.ptum import draw_negatives
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import PrepareFn, TrainState
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import ObjectiveSettings
from experiments.flags.pretraining import (
  PretrainSettings,
  shares_views,
  slice_lengths_of,
)
from experiments.pretraining.context import Context, item_counts
from experiments.pretraining.objectives import init_head, make_objective
from experiments.run import loop
from experiments.run.batches import Batches
from experiments.run.encoder import make_encoder, open_source, restored_head
from experiments.run.steps import (
  Sequences,
  Training,
  effective_length,
  make_buckets,
  make_step,
  sample_lengths,
)


def make_pretraining(
  settings: PretrainSettings, data: UserData, key: jax.Array
) -> tuple[Training, TrainState]:
  """Makes the model of a run, its batches, its step and its initial state.

  `--plan` calls it too, and computes only the shapes of the arrays.
  """
  encoder, params = make_model(settings, data, key)
  splits = with_partners_and_similar(
    settings, data.splits, num_items=encoder.num_items
  )
  batches, sequences = batches_of(settings, splits, encoder.max_length)
  num_steps = settings.total_steps(batches.steps_per_epoch)
  encoding = Encoding(encoder, sequences.buckets, axis_name=AXIS)
  context = Context(settings, batches.users, encoding, num_steps)
  uses_softmax = any(each.over_all_items for each in settings.traits)
  step, state = make_step(
    settings,
    encoder,
    params,
    make_objective(context),
    loop.make_optimizer(settings, loop.learning_rate(settings, num_steps)),
    ids_per_user=max_ids_per_user(settings, batches.length),
    sampled_items=settings.sampled_items if uses_softmax else 0,
    draw=make_drawing(context),
  )
  return Training(encoder, splits, batches, num_steps, sequences, step), state


def make_model(
  settings: PretrainSettings, data: UserData, key: jax.Array
) -> tuple[UserEncoder, dict[str, Any]]:
  """The encoder, and the initial parameters of the model."""
  items, shard_table = data.vocabulary.items, settings.shard_table
  source = open_source(settings.init_from, shard_table=shard_table)
  encoder, params = make_encoder(
    settings, items, key, source=source, shard_table=shard_table
  )
  head = init_head(settings, encoder, data.splits['train'])
  if source and head:
    head = {'head': restored_head(head['head'], items, source)}
  return encoder, params | head


def with_partners_and_similar(
  settings: ObjectiveSettings,
  splits: Mapping[str, UserArrays],
  *,
  num_items: int,
) -> dict[str, UserArrays]:
  """Adds partners of users and similar items, if the objective needs them.

  Partners are in the same split. Similarities of items are computed from the
  histories of `train`.
  """
  traits, more = settings.traits, {}
  if any(each.sees_similar for each in traits):
    if settings.num_similar > num_items:
      raise SettingsError(
        f'--num_similar={settings.num_similar} is more than the {num_items:,} '
        'items: take fewer'
      )
    # Imported here, since SciPy takes 0.1 s and few runs need it.
    from adaptssr_jax.data.similar_items import similar_items

    items = splits['train'].items
    # With --plan_items the encoder may know fewer items than the data.
    num_items = max(num_items, int(items.values.max(initial=0)))
    more['similar_items'] = similar_items(
      items, num_items=num_items, k=settings.num_similar
    )
  added = {}
  for name, users in splits.items():
    if any(each.sees_partners for each in traits):
      more['by_last_item'] = by_last_item(users.items)
    added[name] = users._replace(**more)
  return added


def batches_of(
  settings: PretrainSettings, splits: Mapping[str, UserArrays], max_length: int
) -> tuple[Batches, Sequences]:
  """The batches of a run, and the sequences that a step encodes.

  Args:
    max_length: the longest sequence that the encoder reads.
  """
  has_histories = any(each.sees_histories for each in settings.traits)
  longest = max_length + any(each.sees_target for each in settings.traits)
  length = effective_length(
    splits.values(), sys.maxsize if has_histories else longest
  )
  users = splits['train']
  encoded = encoded_lengths(
    settings, sample_lengths(users, length), max_length=max_length
  )
  batches = Batches(
    users,
    settings.batch_size,
    length,
    settings.seed,
    # Objectives draw random runs from full histories themselves.
    'last' if has_histories else settings.window,
  )
  return batches, Sequences(
    min(length, longest),
    encoded,
    make_buckets(settings, encoded),
    sequences_per_user(settings),
  )


def sequences_per_user(settings: ObjectiveSettings) -> int:
  """The number of sequences that a step encodes per user."""
  # Pooled items may use the encodings of AdaptSSR, which has the same views.
  shared = settings.num_slices if shares_views(settings) else 0
  return sum(each.views * each.passes for each in settings.traits) - shared


def encoded_lengths(
  settings: ObjectiveSettings, lengths: np.ndarray, *, max_length: int
) -> np.ndarray:
  """The lengths of the sequences that a step encodes for such users.

  Args:
    lengths: numbers of behaviours of users, int [users].
    max_length: the longest sequence that the encoder reads.

  Returns:
    Lengths, int [sequences], as if no edit but crop changed a length.
  """
  low, high = slice_lengths_of(settings, max_length)
  # Slices of all lengths, cut to the number of behaviours.
  drawn = np.linspace(low, high, 16).astype(int)
  slices = np.minimum(lengths[:, None], drawn).reshape(-1)
  recent = np.minimum(lengths, max_length)
  found = []
  for traits in settings.traits:
    views = traits.augmentations
    if not traits.is_augmented:
      # The others have the same lengths.
      views = views[:1]
    # As often as they are drawn for the views of a user.
    names = [name for view in views for name in view]
    seen = slices if 'slice' in names else recent
    found += [
      np.ceil(settings.crop_ratio * seen) if name == 'crop' else seen
      for name in names or ['']
    ]
  return np.concatenate(found).astype(int)


def max_ids_per_user(settings: ObjectiveSettings, length: int) -> int:
  """The most item ids that a user adds to a batch.

  Args:
    length: of the sequences in a batch.
  """
  traits = settings.traits
  drawn = sum(each.draws for each in traits)
  # A behaviour may come with one of a partner, and with similar items.
  ids = 1 + any(each.sees_partners for each in traits)
  if any(each.sees_similar for each in traits):
    ids += settings.num_similar
  return (length + drawn) * ids


def make_drawing(context: Context) -> PrepareFn | None:
  """Returns (batch, key) -> batch with drawn items; None if none are drawn."""
  if not any(each.draws for each in context.settings.traits):
    return None
  ends = cumulative_counts(context.encoder, context.users)
  return functools.partial(draw_negatives, ends=ends)


def cumulative_counts(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The number of behaviours with an id up to each id, int32 [1 + items].

  If an int32 cannot hold the total, counts are scaled down; an item that occurs
  keeps a count of at least 1.
  """
  counts = item_counts(encoder, users)
  scale = max(int(counts.sum()) // 2**30, 1)
  return np.cumsum(-(-counts // scale)).astype(np.int32)
