"""Made users, for a first run without any download and for speed work.

Every item belongs to one of a few interests and is popular within it by a
power law. A user has three interests, whose weights drift from a first mix to
a last one along the sequence, and now and then does something at random.
`gender` (2 classes) and `age` (7 classes) are drawn from probabilities that
depend on the user's mean mix, so that behaviours tell part of them and no more.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import (
  Rows,
  TaskConfig,
  UserBuilder,
  Vocabulary,
  split_for_pretraining,
  split_for_task,
)
from adaptssr_jax.data.ragged import Ragged

_INTERESTS = 16
_INTERESTS_A_USER = 3
_NOISE = 0.3
# Exponent of Zipf's law of item popularity, within an interest.
_ZIPF = 0.5
# Made in blocks, so that the temporaries of a million users stay small.
_BLOCK = 65_536
_CLASSES = {
  'gender': ('female', 'male'),
  'age': ('<18', '18-24', '25-34', '35-44', '45-49', '50-55', '56+'),
}
# How strongly the interests decide a label: 0 not at all, 10 nearly alone.
_STRENGTH = 5.0


class Size(NamedTuple):
  """How large a made data set is.

  Args:
    users: number of users.
    items: number of items.
    shortest: least number of behaviours of a user.
    longest: largest number of behaviours of a user.
  """

  users: int
  items: int
  shortest: int
  longest: int


# `app` and `ttl` have the users, items and lengths of the paper's data sets.
SIZES = {
  'tiny': Size(200, 60, 2, 12),
  'quickstart': Size(6_000, 4_000, 10, 40),
  'medium': Size(100_000, 65_536, 10, 100),
  'app': Size(1_500_000, 4_047, 10, 100),
  'ttl': Size(1_500_000, 645_972, 10, 100),
}


@dataclasses.dataclass(eq=False)
class SyntheticConfig(TaskConfig):
  """A size and a task."""

  size: Size = SIZES['quickstart']


def _configs() -> list[SyntheticConfig]:
  return [
    SyntheticConfig(
      name=f'{name}_{task}',
      description=f'{size.users:,} made users, {size.items:,} items: {task}.',
      task=task,
      kind='classification' if task in _CLASSES else 'pretrain',
      size=size,
    )
    for name, size in SIZES.items()
    for task in ('pretrain', *_CLASSES)
  ]


class SyntheticUsers(UserBuilder):
  """Made users with drifting interests, noise, and attributes."""

  BUILDER_CONFIGS = _configs()

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    del dl_manager
    config = self.builder_config
    items, labels = make_users(config.size)
    rows = Rows(
      user_id=[f'user_{row}' for row in range(config.size.users)],
      items=items,
      label=labels.get(config.task),
    )
    pretrain = config.task == 'pretrain'
    split = split_for_pretraining if pretrain else split_for_task
    vocabulary = Vocabulary(
      items=[f'item_{item}' for item in range(1, config.size.items + 1)],
      labels=_CLASSES.get(config.task, ()),
    )
    return split(rows), vocabulary


def make_users(
  size: Size, seed: int = 0
) -> tuple[Ragged, dict[str, np.ndarray]]:
  """Draws the behaviours and the labels of all users.

  Args:
    size: how many users, items and behaviours.
    seed: of the whole data set; the same seed makes the same users.

  Returns:
    The behaviours, item numbers from 1, and a class per user for each label.
  """
  world = np.random.default_rng([seed, 0])
  # A popular item is no more likely than another to have a small number.
  number = world.permutation(size.items).astype(np.int32) + 1
  taste = {
    task: world.normal(size=(_INTERESTS, len(classes)))
    for task, classes in _CLASSES.items()
  }
  values, lengths = [], []
  labels = {task: [] for task in _CLASSES}
  for block, start in enumerate(range(0, size.users, _BLOCK)):
    rng = np.random.default_rng([seed, 1, block])
    users = min(_BLOCK, size.users - start)
    length = rng.integers(size.shortest, size.longest + 1, users)
    interests, first, last = _draw_interests(rng, users)
    values.append(
      number[_draw_items(rng, size, length, interests, first, last)]
    )
    lengths.append(length)
    mix = _dense_mix(interests, (first + last) / 2)
    for task, weights in taste.items():
      noise = rng.gumbel(size=(users, weights.shape[1]))
      scores = _STRENGTH * mix @ weights + noise
      labels[task].append(scores.argmax(axis=1).astype(np.int32))
  items = Ragged.from_lengths(np.concatenate(values), np.concatenate(lengths))
  return items, {task: np.concatenate(parts) for task, parts in labels.items()}


def _draw_interests(
  rng: np.random.Generator, users: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Each user's interests, and their weights at the start and at the end."""
  interests = rng.random((users, _INTERESTS)).argpartition(
    _INTERESTS_A_USER, axis=1
  )[:, :_INTERESTS_A_USER]
  first, last = rng.dirichlet(np.ones(_INTERESTS_A_USER), (2, users))
  return interests, first, last


def _draw_items(
  rng: np.random.Generator,
  size: Size,
  length: np.ndarray,
  interests: np.ndarray,
  first: np.ndarray,
  last: np.ndarray,
) -> np.ndarray:
  """Item indices from 0, by popularity, of all behaviours of all users."""
  user = np.repeat(np.arange(len(length)), length)
  ends = np.repeat(np.cumsum(length), length)
  age = (ends - 1 - np.arange(len(user))) / np.maximum(length[user] - 1, 1)
  weights = first[user] * age[:, None] + last[user] * (1 - age)[:, None]
  draw = rng.random((len(user), 1), dtype=np.float32)
  chosen = (weights.cumsum(axis=1)[:, :-1] < draw).sum(axis=1)
  interest = interests[user, chosen]
  # Noise has favourites of its own, so popularity alone says little.
  noisy = rng.random(len(user)) < _NOISE
  popular = (rng.random(noisy.sum()) ** 2 * _INTERESTS).astype(int)
  interest[noisy] = popular
  # The inverse of the distribution whose density falls as rank ** -_ZIPF.
  ranks = -(-size.items // _INTERESTS)
  rank = ranks * rng.random(len(user)) ** (1 / (1 - _ZIPF))
  return np.minimum(rank.astype(int) * _INTERESTS + interest, size.items - 1)


def _dense_mix(interests: np.ndarray, weights: np.ndarray) -> np.ndarray:
  mix = np.zeros((len(interests), _INTERESTS))
  np.put_along_axis(mix, interests, weights, axis=1)
  return mix
