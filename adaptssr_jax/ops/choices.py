"""Augmentations that are made of others: one of them, two, or all in turn."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray

from adaptssr_jax.ops.sequences import is_real

Augmentation = Callable[[PRNGKeyArray, ArrayLike], Array]


def one_of(*augmentations: Augmentation) -> Augmentation:
  """Makes an augmentation that applies one of several, drawn uniformly.

  Under `jax.vmap` each sequence draws its own.

  Args:
    *augmentations: Functions `(key, items) -> items`, settings already bound.

  Returns:
    A function `(key, items) -> items`.

  Raises:
    ValueError: If there is none, or one is not a function.

  Example:
    >>> from adaptssr_jax.augment import crop
    >>> augment = one_of(functools.partial(crop, ratio=0.5))
    >>> augment(jax.random.key(0), jnp.array([7, 7, 7, 7, 0]))
    Array([7, 7, 0, 0, 0], dtype=int32)
  """
  if not augmentations or not all(map(callable, augmentations)):
    raise ValueError(
      'one_of needs one or more functions of (key, items), such as '
      f'functools.partial(crop, ratio=0.4); got {augmentations}.'
    )
  return functools.partial(_apply_one, augmentations)


def _apply_one(
  augmentations: tuple[Augmentation, ...],
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
) -> Int[Array, ' length']:
  choice_key, key = jax.random.split(key)
  choice = jax.random.randint(choice_key, (), 0, len(augmentations))
  return jax.lax.switch(choice, augmentations, key, items)


def two_of(*augmentations: Augmentation) -> Augmentation:
  """Makes two views of a sequence by two different augmentations.

  Of several, two different ones are drawn, all pairs and both orders equally
  likely. Under `jax.vmap` each sequence draws its own.

  Args:
    *augmentations: Functions `(key, items) -> items`, settings already bound.

  Returns:
    A function `(key, items) -> views`, `[2, length]`.

  Raises:
    ValueError: If there are fewer than two, or one is not a function.

  Example:
    >>> from adaptssr_jax.augment import crop
    >>> augment = two_of(
    ...   functools.partial(crop, ratio=0.5), functools.partial(crop, ratio=1)
    ... )
    >>> views = augment(jax.random.key(0), jnp.array([7, 7, 7, 7, 0]))
    >>> sorted(jnp.sum(views != 0, axis=1).tolist())
    [2, 4]

  Reference:
    Xie et al., "Contrastive Learning for Sequential Recommendation" (CL4SRec),
    ICDE 2022.
  """
  if len(augmentations) < 2 or not all(map(callable, augmentations)):
    raise ValueError(
      'two_of needs two or more functions of (key, items), such as '
      f'functools.partial(crop, ratio=0.4); got {augmentations}.'
    )
  return functools.partial(_apply_two, augmentations)


def _apply_two(
  augmentations: tuple[Augmentation, ...],
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
) -> Int[Array, '2 length']:
  choice_key, *keys = jax.random.split(key, 3)
  count = len(augmentations)
  pair = jax.random.randint(choice_key, (), 0, count * (count - 1))
  first, step = jnp.divmod(pair, count - 1)
  choices = first, (first + 1 + step) % count
  return jnp.stack(
    [
      jax.lax.switch(choice, augmentations, key, items)
      for choice, key in zip(choices, keys, strict=True)
    ]
  )


def by_length(
  short: Augmentation, long: Augmentation, *, most: int
) -> Augmentation:
  """Makes an augmentation that applies one to short sequences, else another.

  Args:
    short: Of sequences of at most `most` behaviours, (key, items) -> items.
    long: Of all others.
    most: How many behaviours a short sequence has at most.

  Returns:
    A function `(key, items) -> items`.

  Example:
    >>> edit = by_length(lambda _, x: x + 1, lambda _, x: x - 1, most=2)
    >>> key = jax.random.key(0)
    >>> edit(key, jnp.array([7, 7, 0]))[0], edit(key, jnp.array([7, 7, 7]))[0]
    (Array(8, dtype=int32), Array(6, dtype=int32))
  """
  return functools.partial(_apply_by_length, short, long, most)


def _apply_by_length(
  short: Augmentation,
  long: Augmentation,
  most: int,
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
) -> Int[Array, ' length']:
  is_short = jnp.sum(is_real(items)) <= most
  return jax.lax.cond(is_short, short, long, key, items)


def in_turn(*augmentations: Augmentation) -> Augmentation:
  """Makes an augmentation that applies several, one after the other.

  Args:
    *augmentations: Functions `(key, items) -> items`, settings already bound.

  Returns:
    A function `(key, items) -> items`.

  Example:
    >>> from adaptssr_jax.augment import crop, random_slice
    >>> augment = in_turn(
    ...   functools.partial(random_slice, lengths=(4, 4)),
    ...   functools.partial(crop, ratio=0.5),
    ... )
    >>> augment(jax.random.key(0), jnp.array([7, 7, 7, 7, 7]))
    Array([7, 7, 0, 0, 0], dtype=int32)
  """
  return functools.partial(_apply_in_turn, augmentations)


def _apply_in_turn(
  augmentations: tuple[Augmentation, ...],
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
) -> Int[Array, ' length']:
  keys = jax.random.split(key, len(augmentations))
  for augment, part in zip(augmentations, keys, strict=True):
    items = augment(part, items)
  return jnp.asarray(items)
