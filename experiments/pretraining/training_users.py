"""What is counted among the training users before a run, and drawn by it."""

import functools

import numpy as np

from adaptssr_jax.data import UserArrays, UserData
from adaptssr_jax.data.prepared.batches import by_last_item
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.ptum import draw_negatives
from adaptssr_jax.training.step import PrepareFn
from experiments.flags.objectives import ObjectiveSettings
from experiments.flags.traits import traits_of
from experiments.pretraining.context import Context

_COUNTED_AT_ONCE = 2**24


def item_counts(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The behaviours of each id, int64 [1 + items]; the first is padding.

  Example:
    >>> from adaptssr_jax.data import Ragged
    >>> users = UserArrays(None, Ragged.from_rows([[1, 1, 1], [3, 1]]))
    >>> item_counts(UserEncoder(3), users).tolist()
    [0, 4, 0, 1]
  """
  counts = np.zeros(encoder.mask_id, np.int64)
  values = users.items.values
  # Piece by piece: to count, NumPy makes a copy of what it counts.
  for start in range(0, len(values), _COUNTED_AT_ONCE):
    counts += np.bincount(
      values[start : start + _COUNTED_AT_ONCE], minlength=encoder.mask_id
    )
  return counts


def ends_of_items(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The behaviours of each id or one before it, int32 [1 + items].

  Of more behaviours than an int32 can count, the counts are scaled down, and an
  item that has any keeps one.
  """
  counts = item_counts(encoder, users)
  scale = max(int(counts.sum()) // 2**30, 1)
  return np.cumsum(-(-counts // scale)).astype(np.int32)


def drawn_of_a_user(context: Context) -> int:
  """How many items a step draws for each user."""
  return sum(traits_of(name).draws for name in context.settings.objective)


def make_drawing(context: Context) -> PrepareFn | None:
  """(batch, key) -> the batch with the items drawn for it, if any are."""
  if not drawn_of_a_user(context):
    return None
  ends = ends_of_items(context.encoder, context.users)
  return functools.partial(draw_negatives, ends=ends)


def with_relations(
  settings: ObjectiveSettings, data: UserData, *, num_items: int
) -> UserData:
  """The data, with what relates users and items, if the objective needs it.

  Partners are of the same split; items are alike in the histories of `train`.
  """
  traits = [traits_of(name) for name in settings.objective]
  more = {}
  if any(of.sees_similar for of in traits):
    # SciPy's, which few runs need, take a tenth of a second to import.
    from adaptssr_jax.data.similar_items import similar_items

    more['similar_items'] = similar_items(
      data.splits['train'].items, num_items=num_items, k=settings.num_similar
    )
  splits = {}
  for name, users in data.splits.items():
    if any(of.sees_partners for of in traits):
      more['by_last_item'] = by_last_item(users.items)
    splits[name] = users._replace(**more)
  return data._replace(splits=splits)


def item_shares(encoder: UserEncoder, users: UserArrays) -> np.ndarray:
  """The share of each id, counted with one more, so that none is zero."""
  counts = 1.0 + item_counts(encoder, users)
  return counts / counts.sum()
