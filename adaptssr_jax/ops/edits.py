"""Parts of augmentations, edits with similar items, and random choices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Augmentation = Callable[[PRNGKeyArray, ArrayLike], Array]
Items = Int[ArrayLike, ' length']
# A share of behaviours: a number, for which ceil(ratio * n) is exact, or a JAX
# array, which may differ at each step and is not checked.
Ratio = float | int | np.floating | Float[Array, '']


def is_real(items: Int[ArrayLike, ' length']) -> Bool[Array, ' length']:
  """False where items are padding."""
  return jnp.asarray(items) != 0


def length_and_size(
  items: Int[ArrayLike, ' length'], ratio: Ratio
) -> tuple[Int[Array, ''], Int[Array, '']]:
  """Returns `n`, the number of behaviours, and `ceil(ratio * n)`."""
  n = jnp.sum(is_real(items), dtype=jnp.int32)
  if isinstance(ratio, jax.Array):
    # A product that is an integer up to rounding must not be rounded up.
    size = ratio.astype(jnp.float32) * n.astype(jnp.float32) * (1 - 1e-6)
    size = jnp.ceil(size).astype(jnp.int32)
    return n, jnp.clip(size, jnp.minimum(n, 1), n)
  if not 0 < ratio <= 1:
    raise ValueError(f'ratio must be in (0, 1], not {ratio}.')
  # Computed on the host in float64: in float32, ceil(0.6 * 25) is 16.
  # The digits of a number of float32 are meant: its 0.4 is above 0.4.
  if isinstance(ratio, np.floating):
    ratio = float(str(ratio))
  sizes = np.ceil(ratio * np.arange(len(items) + 1)).astype(np.int32)
  return n, jnp.asarray(sizes)[n]


def random_positions(
  key: PRNGKeyArray,
  among: Bool[Array, ' length'],
  size: Int[ArrayLike, ''],
) -> Bool[Array, ' length']:
  """Draws `size` distinct positions, or all if there are fewer.

  All sets of positions where `among` is True are equally likely. Returns True
  at the drawn positions.
  """
  # Excluded positions sort last. A stable sort ranks ties, so that the number
  # is exact even if two random numbers are equal.
  draws = jax.random.uniform(key, among.shape, jnp.float32)
  ranks = jnp.argsort(jnp.argsort(jnp.where(among, draws, jnp.inf)))
  return among & (ranks.astype(jnp.int32) < size)


def substitute(
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
  *,
  ratio: Ratio,
  similar: Int[ArrayLike, 'ids k'],
) -> Int[Array, ' length']:
  """Replaces random behaviours by similar items.

  Exactly `ceil(ratio * n)` of the `n` behaviours are replaced, or all that have
  a similar item if those are fewer. Each is replaced by one of its similar
  items, all equally likely.

  Args:
    key: A random key.
    items: `[length]`, real ids first, 0 is padding.
    ratio: The share of behaviours that is replaced, in (0, 1].
    similar: `[ids, k]`, the similar items of each id, including the ids of
      padding and mask; filled up with 0.

  Returns:
    `[length]`, with as many behaviours as before.

  Raises:
    ValueError: If `ratio` is outside (0, 1].

  Example:
    >>> similar = jnp.array([[0], [2], [1], [0]])
    >>> items = jnp.array([1, 2, 3, 0])
    >>> substitute(jax.random.key(0), items, ratio=1, similar=similar)
    Array([2, 1, 3, 0], dtype=int32)

  Reference:
    Liu et al., "Contrastive Self-supervised Sequential Recommendation with
    Robust Augmentation" (CoSeRec), 2021, with ratio 0.1. The authors' code
    rounds the number down and uses only the most similar item, k = 1.
  """
  position_key, choice_key = jax.random.split(key)
  _, size = length_and_size(items, ratio)
  found = _draw_similar(choice_key, items, similar)
  chosen = random_positions(position_key, is_real(found), size)
  return jnp.where(chosen, found, items)


def insert(
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
  *,
  ratio: Ratio,
  similar: Int[ArrayLike, 'ids k'],
) -> Int[Array, ' length']:
  """Inserts a similar item directly before each of some random behaviours.

  An item is inserted before exactly `ceil(ratio * n)` of the `n` behaviours, or
  before all that have a similar item if those are fewer. If the result is
  longer than `length`, only the last, most recent behaviours are kept; if `n`
  is `length`, nothing is inserted before the first one.

  Args:
    key: A random key.
    items: `[length]`, real ids first, from the oldest on, 0 is padding.
    ratio: The share of behaviours before which an item is inserted, in (0, 1].
    similar: `[ids, k]`, see `substitute`.

  Returns:
    `[length]`, the behaviours and the similar items, then padding.

  Raises:
    ValueError: If `ratio` is outside (0, 1].

  Example:
    >>> similar = jnp.array([[0], [8], [9], [0]])
    >>> items = jnp.array([1, 2, 3, 0, 0, 0])
    >>> insert(jax.random.key(0), items, ratio=1, similar=similar)
    Array([8, 1, 9, 2, 3, 0], dtype=int32)
    >>> insert(jax.random.key(0), items[:4], ratio=1, similar=similar)
    Array([1, 9, 2, 3], dtype=int32)

  Reference:
    Liu et al., CoSeRec, 2021, with ratio 0.4; see `substitute`.
  """
  position_key, choice_key = jax.random.split(key)
  n, size = length_and_size(items, ratio)
  length = len(items)
  found = _draw_similar(choice_key, items, similar)
  fits = (jnp.arange(length) > 0) | (n < length)
  chosen = random_positions(position_key, is_real(found) & fits, size)
  found = jnp.where(chosen, found, 0)
  pairs = jnp.stack([found, jnp.asarray(items)], axis=1).reshape(-1)
  # A stable sort moves empty places to the end and keeps the order.
  pairs = pairs[jnp.argsort(~is_real(pairs))]
  too_many = jnp.maximum(n + jnp.sum(chosen, dtype=jnp.int32) - length, 0)
  return jax.lax.dynamic_slice(pairs, (too_many,), (length,))


def _draw_similar(
  key: PRNGKeyArray,
  items: Int[ArrayLike, ' length'],
  similar: Int[ArrayLike, 'ids k'],
) -> Int[Array, ' length']:
  """Draws a similar item for each behaviour; 0 where there is none."""
  items, similar = jnp.asarray(items), jnp.asarray(similar)
  choices = similar[items].astype(items.dtype)
  count = jnp.maximum(jnp.sum(choices != 0, axis=1, dtype=jnp.int32), 1)
  choice = jax.random.randint(key, count.shape, 0, count, jnp.int32)
  found = jnp.take_along_axis(choices, choice[:, None], axis=1)[:, 0]
  return jnp.where(is_real(items), found, 0)


def one_of(
  *augmentations: Augmentation,
  count: Callable[[Items], Int[ArrayLike, '']] | None = None,
) -> Augmentation:
  """Makes an augmentation that applies one of several, drawn uniformly.

  Under `jax.vmap` each sequence draws its own.

  Args:
    *augmentations: Functions `(key, items) -> items`, with bound settings.
    count: items -> the number of augmentations to draw from, the first ones;
      None draws from all.

  Returns:
    A function `(key, items) -> items`.

  Raises:
    ValueError: If no augmentation is given, or one is not a function.

  Example:
    >>> import functools
    >>> from adaptssr_jax.augment import crop
    >>> augment = one_of(functools.partial(crop, ratio=0.5))
    >>> augment(jax.random.key(0), jnp.array([7, 7, 7, 7, 0]))
    Array([7, 7, 0, 0, 0], dtype=int32)
  """
  _check_functions('one_of', augmentations, least=1)

  def apply_one(key: PRNGKeyArray, items: Items) -> Items:
    choice_key, key = jax.random.split(key)
    most = len(augmentations) if count is None else count(items)
    choice = jax.random.randint(choice_key, (), 0, most, jnp.int32)
    return jax.lax.switch(choice, augmentations, key, items)

  return apply_one


def two_of(*augmentations: Augmentation) -> Augmentation:
  """Makes an augmentation that returns two views, by two different functions.

  All ordered pairs of augmentations are equally likely. Under `jax.vmap` each
  sequence draws its own.

  Args:
    *augmentations: Functions `(key, items) -> items`, with bound settings.

  Returns:
    A function `(key, items) -> views`, `[2, length]`.

  Raises:
    ValueError: If fewer than two augmentations are given, or one is not a
      function.

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
  _check_functions('two_of', augmentations, least=2)

  def apply_two(key: PRNGKeyArray, items: Items) -> Int[Array, '2 length']:
    choice_key, *keys = jax.random.split(key, 3)
    count = len(augmentations)
    pairs = count * (count - 1)
    pair = jax.random.randint(choice_key, (), 0, pairs, jnp.int32)
    first, step = jnp.divmod(pair, count - 1)
    choices = first, (first + 1 + step) % count
    views = [
      jax.lax.switch(choice, augmentations, key, items)
      for choice, key in zip(choices, keys, strict=True)
    ]
    return jnp.stack(views)

  return apply_two


def compose(*augmentations: Augmentation) -> Augmentation:
  """Makes an augmentation that applies several, one after another.

  Example:
    >>> import functools
    >>> from adaptssr_jax.augment import crop, random_slice
    >>> augment = compose(
    ...   functools.partial(random_slice, lengths=(4, 4)),
    ...   functools.partial(crop, ratio=0.5),
    ... )
    >>> augment(jax.random.key(0), jnp.array([7, 7, 7, 7, 7]))
    Array([7, 7, 0, 0, 0], dtype=int32)
  """

  def apply_all(key: PRNGKeyArray, items: Items) -> Items:
    keys = jax.random.split(key, len(augmentations))
    for augment, part in zip(augmentations, keys, strict=True):
      items = augment(part, items)
    return jnp.asarray(items)

  return apply_all


def _check_functions(
  name: str, augmentations: tuple[Augmentation, ...], *, least: int
) -> None:
  if len(augmentations) < least or not all(map(callable, augmentations)):
    raise ValueError(
      f'{name} needs {least} or more functions of (key, items), such as '
      f'functools.partial(crop, ratio=0.4); got {augmentations}.'
    )
