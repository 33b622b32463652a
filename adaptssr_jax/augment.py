"""Random edits of one behaviour sequence: the explicit augmentations.

Each takes a key and a padded sequence and returns a sequence of the same shape.
Map it over users by `jax.vmap`; bind its settings by `functools.partial`:

>>> import functools
>>> augment = one_of(
...   functools.partial(crop, ratio=0.4),
...   functools.partial(mask, ratio=0.6, mask_id=9),
...   functools.partial(reorder, ratio=0.6),
... )
>>> keys = jax.random.split(jax.random.key(0), 3)
>>> jax.vmap(augment)(keys, jnp.array([[1, 2, 3], [4, 5, 0], [6, 0, 0]])).shape
(3, 3)
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray

from adaptssr_jax.ops.edits import Augmentation as Augmentation
from adaptssr_jax.ops.edits import (
  Ratio,
  compose,
  insert,
  is_real,
  length_and_size,
  one_of,
  random_positions,
  substitute,
  two_of,
)

__all__ = [
  'compose',
  'crop',
  'insert',
  'mask',
  'one_of',
  'random_slice',
  'reorder',
  'substitute',
  'two_of',
]


def crop(
  key: PRNGKeyArray, items: Int[ArrayLike, ' length'], *, ratio: Ratio
) -> Int[Array, ' length']:
  """Keeps a random run of consecutive behaviours and moves it to the front.

  The run has `ceil(ratio * n)` of the `n` behaviours; all starts are equally
  likely.

  Args:
    key: A random key.
    items: `[length]`, real ids first, 0 is padding.
    ratio: The share of behaviours that is kept, in (0, 1].

  Returns:
    `[length]`, the run, then padding.

  Raises:
    ValueError: If `ratio` is outside (0, 1].

  Example:
    >>> crop(jax.random.key(0), jnp.array([7, 7, 7, 7, 0]), ratio=0.5)
    Array([7, 7, 0, 0, 0], dtype=int32)
  """
  return _keep(items, *_random_run(key, items, ratio))


def mask(
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
  *,
  ratio: Ratio,
  mask_id: int | np.integer,
) -> Int[Array, ' length']:
  """Replaces random behaviours by `mask_id`.

  Exactly `min(ceil(ratio * n), n - 1)` of the `n` behaviours are replaced: at
  least one is kept, and a single behaviour is unchanged.

  Args:
    key: A random key.
    items: `[length]`, real ids first, 0 is padding.
    ratio: The share of behaviours that is replaced, in (0, 1].
    mask_id: The id that replaces them; not 0, which is padding.

  Returns:
    `[length]`, with as many behaviours as before.

  Raises:
    ValueError: If `ratio` is outside (0, 1], or `mask_id` is not positive or
      too large for the dtype of `items`.

  Example:
    >>> masked = mask(
    ...   jax.random.key(0), jnp.array([7, 7, 7, 7, 0]), ratio=0.5, mask_id=9
    ... )
    >>> jnp.sort(masked)
    Array([0, 7, 7, 9, 9], dtype=int32)
  """
  items, mask_id = jnp.asarray(items), operator.index(mask_id)
  if mask_id <= 0:
    raise ValueError(
      f'mask_id must be positive (0 is padding), not {mask_id}; '
      'use the number of items + 1.'
    )
  if mask_id > jnp.iinfo(items.dtype).max:
    raise ValueError(
      f'mask_id {mask_id} does not fit items of {items.dtype}; use a larger '
      'integer dtype.'
    )
  n, size = length_and_size(items, ratio)
  masked = random_positions(key, is_real(items), jnp.minimum(size, n - 1))
  return jnp.where(masked, mask_id, items)


def reorder(
  key: PRNGKeyArray, items: Int[ArrayLike, ' length'], *, ratio: Ratio
) -> Int[Array, ' length']:
  """Shuffles a random run of consecutive behaviours.

  The run has `ceil(ratio * n)` of the `n` behaviours; all starts and all orders
  are equally likely.

  Args:
    key: A random key.
    items: `[length]`, real ids first, 0 is padding.
    ratio: The share of behaviours that is shuffled, in (0, 1].

  Returns:
    `[length]`, the same behaviours in another order.

  Raises:
    ValueError: If `ratio` is outside (0, 1].

  Example:
    >>> shuffled = reorder(
    ...   jax.random.key(0), jnp.array([4, 5, 6, 7, 0]), ratio=0.5
    ... )
    >>> jnp.sort(shuffled)
    Array([0, 4, 5, 6, 7], dtype=int32)
  """
  start, size = _random_run(key, items, ratio)
  run_key = jax.random.fold_in(key, 1)
  position = jnp.arange(len(items), dtype=jnp.int32)
  in_run = (position >= start) & (position < start + size)
  # All of the run has the same rank, and random draws break the ties.
  rank = jnp.where(in_run, start, position)
  draws = jax.random.uniform(run_key, position.shape, jnp.float32)
  order = jnp.lexsort((draws, rank))
  return jnp.asarray(items)[order]


def random_slice(
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
  *,
  lengths: tuple[int, int],
) -> Int[Array, ' length']:
  """Keeps a run of random length and moves it to the front.

  The run has `m` of the `n` behaviours, with `m` drawn uniformly from
  `min(low, n)..min(high, n)`; all starts are equally likely. Two slices of one
  history are two views of a user without any edited behaviour.

  Args:
    key: A random key.
    items: `[length]`, the whole history: real ids first, 0 is padding.
    lengths: `(low, high)`, the smallest and the largest size of a slice.

  Returns:
    `[length]`, the run, then padding, at least from position `high` on.

  Raises:
    ValueError: If not `1 <= low <= high`.

  Example:
    >>> history = jnp.array([7, 7, 7, 7, 0])
    >>> random_slice(jax.random.key(0), history, lengths=(2, 2))
    Array([7, 7, 0, 0, 0], dtype=int32)

  Reference:
    Babaev et al., "CoLES: Contrastive Learning for Event Sequences with
    Self-Supervision", SIGMOD 2022: random slices of one sequence as views.
  """
  low, high = lengths
  if not 1 <= low <= high:
    raise ValueError(f'lengths must be 1 <= low <= high, not {lengths}.')
  size_key, start_key = jax.random.split(key)
  n = jnp.sum(is_real(items), dtype=jnp.int32)
  least, most = jnp.minimum(low, n), jnp.minimum(high, n)
  size = jax.random.randint(size_key, (), least, most + 1, jnp.int32)
  start = jax.random.randint(start_key, (), 0, n - size + 1, jnp.int32)
  return _keep(items, start, size)


def _keep(
  items: Int[ArrayLike, ' length'], start: Array, size: Array
) -> Int[Array, ' length']:
  """Moves a run of behaviours to the front and drops the others."""
  kept = jnp.arange(len(items), dtype=jnp.int32) < size
  return jnp.where(kept, jnp.roll(items, -start), 0)


def _random_run(
  key: PRNGKeyArray, items: Int[ArrayLike, ' length'], ratio: Ratio
) -> tuple[Int[Array, ''], Int[Array, '']]:
  """Returns the start and size of a run of `ceil(ratio * n)` behaviours."""
  n, size = length_and_size(items, ratio)
  key = jax.random.fold_in(key, 0)
  return jax.random.randint(key, (), 0, n - size + 1, jnp.int32), size
