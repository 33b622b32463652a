"""Augmentations that are made of others: one of them, two, or all in turn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray

from adaptssr_jax.ops.sequences import is_real

Augmentation = Callable[[PRNGKeyArray, ArrayLike], Array]
Items = Int[ArrayLike, ' length']


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
    >>> import functools
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

  def apply_one(key: PRNGKeyArray, items: Items) -> Items:
    choice_key, key = jax.random.split(key)
    choice = jax.random.randint(choice_key, (), 0, len(augmentations))
    return jax.lax.switch(choice, augmentations, key, items)

  return apply_one


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
    >>> import functools
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

  def apply_two(key: PRNGKeyArray, items: Items) -> Int[Array, '2 length']:
    choice_key, *keys = jax.random.split(key, 3)
    count = len(augmentations)
    pair = jax.random.randint(choice_key, (), 0, count * (count - 1))
    first, step = jnp.divmod(pair, count - 1)
    choices = first, (first + 1 + step) % count
    views = [
      jax.lax.switch(choice, augmentations, key, items)
      for choice, key in zip(choices, keys, strict=True)
    ]
    return jnp.stack(views)

  return apply_two


def one_by_length(
  *augmentations: Augmentation, most: int, short: int
) -> Augmentation:
  """Makes an augmentation that applies one of several, or of the first few.

  Of a short sequence one of the first few is drawn, of a longer one any of all,
  each equally likely. Under `jax.vmap` each sequence draws its own.

  Args:
    *augmentations: Functions `(key, items) -> items`, settings already bound.
    most: How many behaviours a short sequence has at most.
    short: How many of the augmentations are for short sequences, the first.

  Returns:
    A function `(key, items) -> items`.

  Raises:
    ValueError: If not `1 <= short <= len(augmentations)`, or one is not a
      function.

  Example:
    >>> import functools
    >>> from adaptssr_jax.augment import crop
    >>> augment = one_by_length(
    ...   functools.partial(crop, ratio=1), functools.partial(crop, ratio=0.5),
    ...   most=2, short=1,
    ... )
    >>> augment(jax.random.key(0), jnp.array([7, 7, 0]))
    Array([7, 7, 0], dtype=int32)
  """
  if not 1 <= short <= len(augmentations) or not all(
    map(callable, augmentations)
  ):
    raise ValueError(
      'one_by_length needs functions of (key, items), of which the first '
      f'`short` are for short sequences; got {augmentations} and {short}.'
    )

  def apply_by_length(key: PRNGKeyArray, items: Items) -> Items:
    choice_key, key = jax.random.split(key)
    is_short = jnp.sum(is_real(items)) <= most
    count = jnp.where(is_short, short, len(augmentations))
    choice = jax.random.randint(choice_key, (), 0, count)
    return jax.lax.switch(choice, augmentations, key, items)

  return apply_by_length


def in_turn(*augmentations: Augmentation) -> Augmentation:
  """Makes an augmentation that applies several, one after the other.

  Args:
    *augmentations: Functions `(key, items) -> items`, settings already bound.

  Returns:
    A function `(key, items) -> items`.

  Example:
    >>> import functools
    >>> from adaptssr_jax.augment import crop, random_slice
    >>> augment = in_turn(
    ...   functools.partial(random_slice, lengths=(4, 4)),
    ...   functools.partial(crop, ratio=0.5),
    ... )
    >>> augment(jax.random.key(0), jnp.array([7, 7, 7, 7, 7]))
    Array([7, 7, 0, 0, 0], dtype=int32)
  """

  def apply_in_turn(key: PRNGKeyArray, items: Items) -> Items:
    keys = jax.random.split(key, len(augmentations))
    for augment, part in zip(augmentations, keys, strict=True):
      items = augment(part, items)
    return jnp.asarray(items)

  return apply_in_turn
