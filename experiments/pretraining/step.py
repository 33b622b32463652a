"""The training step of pre-training, and the data statistics that it needs."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.data.prepared.batches import by_last_item
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.ptum import draw_negatives
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.training.devices import AXIS
from adaptssr_jax.training.step import PrepareFn, TrainState
from experiments.flags.objectives import (
  ObjectiveSettings,
  augmentations_of,
  shares_views,
  slice_lengths_of,
  uses_histories,
)
from experiments.flags.pretraining import PretrainSettings, longest_sequence
from experiments.flags.traits import traits_of
from experiments.pretraining.context import Context
from experiments.pretraining.objectives import make_objective, sampled_of
from experiments.run import loop
from experiments.run.batches import steps_of_run
from experiments.run.speed import (
  effective_length,
  make_buckets,
  make_training,
  sample_lengths,
)

_COUNTED_AT_ONCE = 2**24


def lengths_of(
  settings: PretrainSettings, data: UserData, encoder: UserEncoder
) -> tuple[int, np.ndarray, Buckets]:
  """The lengths with which a step is built.

  Returns:
    The length of the sequences in a batch; the lengths of the sequences that
    are encoded for a sample of users, int [sequences]; and the buckets chosen
    for these lengths.
  """
  longest = longest_sequence(settings, encoder.max_length)
  if uses_histories(settings):
    longest = sys.maxsize
  length = effective_length(data.splits.values(), longest)
  seen = sample_lengths(data.splits['train'], length)
  encoded = encoded_lengths(settings, seen, max_length=encoder.max_length)
  return length, encoded, make_buckets(settings, encoded)


def make_pretraining(
  settings: PretrainSettings,
  encoder: UserEncoder,
  params: dict[str, Any],
  buckets: Buckets,
  *,
  length: int,
  users: UserArrays,
) -> tuple[Callable, TrainState]:
  """The training step of a run, before `pmap_step`, and the initial state."""
  context = Context(settings, users, Encoding(encoder, buckets, axis_name=AXIS))
  return make_training(
    settings,
    encoder,
    params,
    make_objective(context),
    loop.make_optimizer(
      settings, loop.learning_rate(settings, steps_of_run(settings, users))
    ),
    length=length + drawn_of_a_user(context),
    sampled_items=sampled_of(settings),
    draw=make_drawing(context),
  )


def batch_settings(settings: PretrainSettings) -> PretrainSettings:
  """The settings with which batches are made.

  If batches hold full histories, objectives draw random runs from them.
  """
  if uses_histories(settings):
    return dataclasses.replace(settings, window='last')
  return settings


def encoded_of_a_user(settings: ObjectiveSettings) -> int:
  """The number of sequences that a step encodes per user."""
  total = 0
  for name in settings.objective:
    if name == 'pooled_items' and shares_views(settings):
      # It uses the encodings of AdaptSSR, which has the same views.
      continue
    traits = traits_of(name)
    total += (traits.views or settings.num_slices) * traits.passes
  return total


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
  for objective in settings.objective:
    traits = traits_of(objective)
    views = traits.edits
    if traits.is_augmented:
      # The augmentations of all views of a user, as often as they are drawn.
      views = augmentations_of(settings, objective)
      second = settings.second_augmentations or views
      views += second * (settings.num_slices - 1)
    seen = slices if traits.is_sliced or 'slice' in views else recent
    found += [
      np.ceil(settings.crop_ratio * seen) if name == 'crop' else seen
      for name in views or ('',)
    ]
  return np.concatenate(found).astype(int)


def item_counts(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The number of behaviours per id, int64 [1 + items]; id 0 is padding.

  Example:
    >>> from adaptssr_jax.data import Ragged
    >>> users = UserArrays(None, Ragged.from_rows([[1, 1, 1], [3, 1]]))
    >>> item_counts(UserEncoder(3), users).tolist()
    [0, 4, 0, 1]
  """
  counts = np.zeros(encoder.mask_id, np.int64)
  values = users.items.values
  # In parts, since NumPy copies the values that it counts.
  for start in range(0, len(values), _COUNTED_AT_ONCE):
    counts += np.bincount(
      values[start : start + _COUNTED_AT_ONCE], minlength=encoder.mask_id
    )
  return counts


def cumulative_counts(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The number of behaviours with an id up to each id, int32 [1 + items].

  If an int32 cannot hold the total, counts are scaled down; an item that occurs
  keeps a count of at least 1.
  """
  counts = item_counts(encoder, users)
  scale = max(int(counts.sum()) // 2**30, 1)
  return np.cumsum(-(-counts // scale)).astype(np.int32)


def drawn_of_a_user(context: Context) -> int:
  """The number of items that a step draws per user."""
  return sum(traits_of(name).draws for name in context.settings.objective)


def make_drawing(context: Context) -> PrepareFn | None:
  """Returns (batch, key) -> batch with drawn items; None if none are drawn."""
  if not drawn_of_a_user(context):
    return None
  ends = cumulative_counts(context.encoder, context.users)
  return functools.partial(draw_negatives, ends=ends)


def with_partners_and_similar(
  settings: ObjectiveSettings, data: UserData, *, num_items: int
) -> UserData:
  """Adds partners of users and similar items, if the objective needs them.

  Partners are in the same split. Similarities of items are computed from the
  histories of `train`.
  """
  traits = [traits_of(name) for name in settings.objective]
  more = {}
  if any(each.sees_similar for each in traits):
    # Imported here, since SciPy takes 0.1 s and few runs need it.
    from adaptssr_jax.data.similar_items import similar_items

    more['similar_items'] = similar_items(
      data.splits['train'].items, num_items=num_items, k=settings.num_similar
    )
  splits = {}
  for name, users in data.splits.items():
    if any(each.sees_partners for each in traits):
      more['by_last_item'] = by_last_item(users.items)
    splits[name] = users._replace(**more)
  return data._replace(splits=splits)


def item_shares(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The share of behaviours per id, with 1 added to each count."""
  counts = 1.0 + item_counts(encoder, users)
  return counts / counts.sum()
