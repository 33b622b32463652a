"""Views of users: augmented sequences, each encoded under dropout.

Objectives of the same views share their encodings: each is a loss
`(params, batch, views) -> (loss, metrics)`, and `views_objective` returns their
weighted sum.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adaptssr_jax.augment import Augmentation
from adaptssr_jax.objectives.users import Encoding, LossAndMetrics, user_keys

# One per view, or one function (key, items) -> all views, [views, length].
Augmentations = tuple[Augmentation, ...] | Augmentation


class Views(NamedTuple):
  """The views of the users of a device.

  Args:
    items: `[views, users, length]`, the augmented sequences.
    users: `[views, passes, users, dim]`, their vectors. The passes of a view
      have different dropout masks.
  """

  items: Int[Array, 'views users length']
  users: Float[Array, 'views passes users dim']


# (params, batch, views) -> loss and metrics
ViewsLoss = Callable[[dict[str, Any], dict[str, Array], Views], LossAndMetrics]


def no_augmentation(
  key: Key[Array, ''], items: Int[Array, 'length']
) -> Int[Array, 'length']:
  """Returns the behaviours as they are, for views that differ by dropout."""
  del key
  return items


@jax.named_scope('views')
def user_views(
  key: Key[Array, ''],
  items: Int[Array, 'length'],
  *,
  augmentations: Augmentations,
  passes: int = 2,
) -> tuple[Int[Array, 'views length'], Key[Array, 'views passes']]:
  """Draws the augmented views of one user, and dropout keys for each.

  Args:
    augmentations: a function (key, items) -> items per view; or one function
      (key, items) -> all views, [views, length].
    passes: number of dropout masks with which each view is encoded.

  Returns:
    Views, [views, length], and keys, [views, passes].
  """
  view_key, dropout_key = jax.random.split(key)
  if callable(augmentations):
    views = augmentations(view_key, items)
  else:
    keys = jax.random.split(view_key, len(augmentations))
    views = jnp.stack(
      [
        augment(key, items)
        for augment, key in zip(augmentations, keys, strict=True)
      ]
    )
  return views, jax.random.split(dropout_key, (len(views), passes))


def encode_views(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  encoding: Encoding,
  augmentations: Augmentations,
  passes: int = 2,
) -> Views:
  """Draws and encodes the views of a batch.

  Args:
    batch: the `length` of its `items` may exceed the encoder's `max_length` if
      every augmentation returns sequences of at most `max_length`.
    encoding: if it is deterministic, all passes of a view are the same.
    augmentations: of each view of a user, see `user_views`.
    passes: number of dropout masks with which each view is encoded.
  """
  draw = functools.partial(
    user_views, augmentations=augmentations, passes=passes
  )
  items, keys = jax.vmap(draw)(
    user_keys(key, batch['example_id']), batch['items']
  )
  items = items[..., : encoding.encoder.max_length]
  # The passes of a view are adjacent.
  sequences = jnp.repeat(items[:, :, None], passes, axis=2)
  users = encoding(params, sequences, keys)
  return Views(jnp.moveaxis(items, 0, 1), jnp.moveaxis(users, 0, 2))


def views_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  losses: Mapping[str, ViewsLoss],
  weights: Mapping[str, float] | None = None,
  encode: Callable[..., Views],
) -> LossAndMetrics:
  """The weighted sum of losses of the same views, which are encoded once.

  sum over losses of weight * loss

  Args:
    losses: by name, each (params, batch, views) -> loss and metrics.
    weights: of the losses, by name; 1 where none is given.
    encode: (params, batch, key) -> `Views`, such as `encode_views` with its
      settings bound.

  Returns:
    The weighted sum, and the metrics of all; see `weighted_sum`.
  """
  views = encode(params, batch, key)
  with jax.named_scope('loss'):
    return weighted_sum(
      {name: loss(params, batch, views) for name, loss in losses.items()},
      weights or {},
    )


def sum_objective(
  params: dict[str, Any],
  batch: dict[str, Array],
  key: Key[Array, ''],
  *,
  objectives: Mapping[str, Callable[..., LossAndMetrics]],
  weights: Mapping[str, float],
) -> LossAndMetrics:
  """The weighted sum of objectives that encode their own sequences.

  sum over objectives of weight * loss

  Args:
    key: the random key of this step; each objective gets a different one.
    objectives: by name, each (params, batch, key) -> loss and metrics.
    weights: by name; 1 where none is given.

  Returns:
    The weighted sum, and the metrics of all; see `weighted_sum`.
  """
  keys = jax.random.split(key, len(objectives))
  found = {
    name: objective(params, batch, own)
    for (name, objective), own in zip(objectives.items(), keys, strict=True)
  }
  return weighted_sum(found, weights)


def weighted_sum(
  parts: Mapping[str, LossAndMetrics], weights: Mapping[str, float]
) -> LossAndMetrics:
  """Adds weighted losses, and merges their metrics.

  Args:
    parts: (loss, metrics) by name.
    weights: by name; 1 where none is given.

  Returns:
    The weighted sum; and the metrics of all parts, in which `loss` is this sum
    and `NAME_loss` the loss of part NAME. A single part without a weight is
    returned unchanged.

  Example:
    >>> one, half = jnp.ones(()), jnp.full((), 0.5)
    >>> loss, metrics = weighted_sum(
    ...   {'a': (one, {'loss': (4 * one, 4 * one)}),
    ...    'b': (half, {'loss': (half, one)})},
    ...   {'b': 0.2},
    ... )
    >>> print(f'{loss:.1f}', {k: float(s / n) for k, (s, n) in metrics.items()})
    1.1 {'loss': 1.100000023841858, 'a_loss': 1.0, 'b_loss': 0.5}
  """
  if len(parts) == 1 and not weights:
    (only,) = parts.values()
    return only
  total = sum(
    weights.get(name, 1.0) * loss for name, (loss, _) in parts.items()
  )
  named = {}
  for name, (_, metrics) in parts.items():
    for key, value in metrics.items():
      # Two parts may have a metric of the same name.
      is_known = key == 'loss' or key in named
      named[f'{name}_{key}' if is_known else key] = value
  # Parts are means over different examples, such as users or positions. The
  # total has the count of the first part, so that it adds up over devices.
  _, count = next(iter(parts.values()))[1]['loss']
  return total, {'loss': (total * count, count)} | named
