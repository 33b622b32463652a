"""Synthetic users, for a first run without a download and to measure speed.

Every item belongs to one of a few interests, within which popularity follows a
power law. A user has three interests, whose weights drift along the sequence
from a first mix to a last one; some behaviours are random. `gender` (2 classes)
and `age` (7 classes) are drawn from probabilities that depend on the user's
mean mix, so that behaviours predict them in part. `conversion`, true for one
user in twenty, depends on the last mix. The targets of `click` are `_NEXT`
draws of items by the last mix, without repetitions; those of `thumb_up` are the
ones among them that belong to the user's interests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import (
  Rows,
  Vocabulary,
  split_positives,
  split_rows,
)

_INTERESTS = 16
_INTERESTS_A_USER = 3
_NOISE = 0.3
# Exponent of Zipf's law of item popularity, within an interest.
_ZIPF = 0.5
# Users drawn at a time, so that temporary arrays stay small.
_BLOCK = 65_536
_CLASSES = {
  'gender': ('female', 'male'),
  'age': ('<18', '18-24', '25-34', '35-44', '45-49', '50-55', '56+'),
}
_CONVERSION = {'conversion': ('not converted', 'converted')}
_KINDS = {
  'pretrain': 'pretrain',
  'gender': 'classification',
  'age': 'classification',
  'conversion': 'conversion',
  'click': 'ranking',
  'thumb_up': 'ranking',
}
_CONVERTED = 0.05
_NEXT = 5
# How strongly interests determine a label: 0 not at all, 10 almost fully.
_STRENGTH = 5.0


class Size(NamedTuple):
  """The size of a synthetic data set.

  Args:
    users: number of users.
    items: number of items.
    shortest: smallest number of behaviours of a user.
    longest: largest number of behaviours of a user.
  """

  users: int
  items: int
  shortest: int
  longest: int


# `app` and `ttl` have as many users and items as the paper's data sets, and
# sequences of the same lengths.
SIZES = {
  'tiny': Size(200, 60, 2, 12),
  'quickstart': Size(6_000, 4_000, 10, 40),
  'medium': Size(100_000, 65_536, 10, 100),
  'app': Size(1_500_000, 4_047, 10, 100),
  'ttl': Size(1_500_000, 645_972, 10, 100),
}


class SyntheticUsers(UserBuilder):
  """Synthetic users with drifting interests, noise, and attributes."""

  BUILDER_CONFIGS = tuple(
    TaskConfig(task=task, kind=kind, size=size)
    for size in SIZES
    for task, kind in _KINDS.items()
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    del dl_manager
    config = self.builder_config
    size = SIZES[config.size]
    items, labels = make_users(size)
    rows = Rows([f'user_{row}' for row in range(size.users)], items)
    names = [f'item_{item}' for item in range(1, size.items + 1)]
    if config.kind == 'ranking':
      targets = make_next_items(size, liked=config.task == 'thumb_up')
      distinct, values = np.unique(targets.values, return_inverse=True)
      targets = Ragged(values.astype(np.int32), targets.offsets)
      vocabulary = Vocabulary(names, [names[item - 1] for item in distinct])
      return split_positives(rows._replace(targets=targets)), vocabulary
    rows = rows._replace(label=labels.get(config.task))
    classes = (_CLASSES | _CONVERSION).get(config.task, ())
    return split_rows(rows, config.task), Vocabulary(names, classes)


def make_users(size: Size) -> tuple[Ragged, dict[str, np.ndarray]]:
  """Draws the behaviours, item numbers from 1, and {task: class of each user}.

  The same size always gives the same users.
  """
  world = np.random.default_rng([0, 0])
  number = _item_numbers(world, size)
  taste = {
    task: world.normal(size=(_INTERESTS, len(classes)))
    for task, classes in _CLASSES.items()
  }
  buying = world.normal(size=_INTERESTS)
  values, lengths = [], []
  labels = {task: [] for task in (*_CLASSES, *_CONVERSION)}
  for rng, after, length, interests, first, last in _blocks(size):
    values.append(
      number[_draw_items(rng, size, length, interests, first, last)]
    )
    lengths.append(length)
    mix = _dense_mix(interests, (first + last) / 2)
    for task, weights in taste.items():
      noise = rng.gumbel(size=(len(length), weights.shape[1]))
      scores = _STRENGTH * mix @ weights + noise
      labels[task].append(scores.argmax(axis=1).astype(np.int32))
    scores = _STRENGTH * _dense_mix(interests, last) @ buying
    scores += after.gumbel(size=len(length))
    rare = scores > np.quantile(scores, 1 - _CONVERTED)
    labels['conversion'].append(rare.astype(np.int32))
  items = Ragged.from_lengths(np.concatenate(values), np.concatenate(lengths))
  return items, {task: np.concatenate(parts) for task, parts in labels.items()}


def make_next_items(size: Size, *, liked: bool) -> Ragged:
  """Draws the next items of the users of `make_users(size)`.

  Args:
    liked: whether to keep only items of the user's own interests.

  Returns:
    The distinct next items of each user, item numbers from 1, at most `_NEXT`.
  """
  number = _item_numbers(np.random.default_rng([0, 0]), size)
  values, lengths = [], []
  for _, after, length, interests, _, last in _blocks(size):
    # Drawn like the behaviours, but by the last mix only.
    count = np.full(len(length), _NEXT)
    drawn = _draw_items(after, size, count, interests, last, last)
    drawn = np.sort(drawn.reshape(-1, _NEXT), axis=1)
    kept = np.diff(drawn, axis=1, prepend=-1) > 0
    if liked:
      own = drawn[:, :, None] % _INTERESTS == interests[:, None, :]
      kept &= own.any(axis=2)
    values.append(number[drawn[kept]])
    lengths.append(kept.sum(axis=1))
  return Ragged.from_lengths(np.concatenate(values), np.concatenate(lengths))


def _item_numbers(world: np.random.Generator, size: Size) -> np.ndarray:
  # Makes the number of an item independent of its popularity.
  return world.permutation(size.items).astype(np.int32) + 1


def _blocks(size: Size) -> Iterator[tuple[Any, ...]]:
  """Draws the users, block by block.

  Yields:
    The generator for behaviours and attributes, the generator for next items,
    the number of behaviours of each user, the interests of each user, and their
    weights at the start and at the end of the sequence.
  """
  for block, start in enumerate(range(0, size.users, _BLOCK)):
    rng = np.random.default_rng([0, 1, block])
    after = np.random.default_rng([0, 2, block])
    users = min(_BLOCK, size.users - start)
    length = rng.integers(size.shortest, size.longest + 1, users)
    drawn = rng.random((users, _INTERESTS))
    interests = drawn.argpartition(_INTERESTS_A_USER, axis=1)
    first, last = rng.dirichlet(np.ones(_INTERESTS_A_USER), (2, users))
    yield rng, after, length, interests[:, :_INTERESTS_A_USER], first, last


def _draw_items(
  rng: np.random.Generator,
  size: Size,
  length: np.ndarray,
  interests: np.ndarray,
  first: np.ndarray,
  last: np.ndarray,
) -> np.ndarray:
  """Draws the items of all behaviours: indices from 0, most popular first."""
  user = np.repeat(np.arange(len(length)), length)
  ends = np.repeat(np.cumsum(length), length)
  age = (ends - 1 - np.arange(len(user))) / np.maximum(length[user] - 1, 1)
  weights = first[user] * age[:, None] + last[user] * (1 - age)[:, None]
  draw = rng.random((len(user), 1), dtype=np.float32)
  chosen = (weights.cumsum(axis=1)[:, :-1] < draw).sum(axis=1)
  interest = interests[user, chosen]
  # Noise has its own popular interests, so that popularity says little.
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
