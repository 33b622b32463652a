"""Encodes a batch of mixed lengths without paying for all of its padding."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int


def in_buckets(
  encode: Callable[..., Any],
  items: Int[Array, 'rows length'],
  *args: Any,
  widths: tuple[int, ...],
) -> Any:
  """Encodes sequences in groups of similar length, each cut to its width.

  The rows are sorted by length and split into `len(widths)` groups of equal
  size; group g is encoded as [size, widths[g]], and the sort is undone. A batch
  with a row that is too long for its group is encoded whole, at full length:
  nothing is ever cut off. Under vmap both happen, so map devices, not batches.

  Args:
    encode: (items [m, width], *args) -> arrays [m, ...], whose shapes after
      the first axis, and values, do not depend on the width.
    items: `[rows, length]`, ids, 0 at the end for padding.
    *args: arrays [rows, ...] that go with the sequences, such as keys.
    widths: of the groups, in order, as of `bucket_widths`.

  Returns:
    What `encode(items, *args)` returns.

  Raises:
    ValueError: If the widths are not positive and in order.

  Example:
    >>> items = jnp.array([[3, 4, 5, 6], [7, 0, 0, 0], [8, 9, 0, 0]])
    >>> in_buckets(functools.partial(jnp.sum, axis=1), items, widths=(2, 4))
    Array([18,  7, 17], dtype=int32)
  """
  if not widths or widths[0] < 1 or list(widths) != sorted(widths):
    raise ValueError(
      f'widths must be positive and in order, not {widths}: take those of '
      'bucket_widths'
    )
  rows, length = items.shape
  if rows == 0 or widths[0] >= length:
    return encode(items, *args)
  groups = _groups(rows, widths)
  lengths = jnp.sum(items != 0, axis=1)
  order = jnp.argsort(lengths)
  in_groups = functools.partial(_encode_groups, encode, groups)
  # Whichever program runs, what both keep for the gradient is written, if only
  # as zeros: let the one that hardly ever runs keep nothing.
  whole = functools.partial(_encode_whole, jax.checkpoint(encode))
  fits = _fits(lengths[order], groups)
  return lax.cond(fits, in_groups, whole, order, items, *args)


def bucket_widths(
  lengths: Int[ArrayLike, 'sequences'],
  *,
  rows: int,
  groups: int,
  max_length: int,
  chance: float = 1e-3,
) -> tuple[int, ...]:
  """Finds the widths that nearly every batch fits, for `in_buckets`.

  w_g = min{w : P(Binomial(rows, F(w)) < rank_g) < chance},
  rank_g = floor(rows (g + 1) / groups),  F(w) = share of lengths <= w

  since the longest row of group g is longer than w exactly if fewer than rank_g
  rows are not. Widths are rounded up to a multiple of 4.

  Args:
    lengths: of the data set's sequences, or of a sample of the views made of
      them, as the step will encode them.
    rows: how many independent draws a batch is: the users of a device, even if
      each of them has several views.
    groups: how many.
    max_length: the width of the last group.
    chance: that a batch does not fit a group.

  Returns:
    `groups` widths; equal ones are neighbours and cost nothing.

  Raises:
    ValueError: If `rows`, `groups`, or `max_length` is not positive, or there
      are no lengths.

  Example:
    >>> lengths = np.arange(1, 101)
    >>> bucket_widths(lengths, rows=512, groups=4, max_length=100)
    (32, 60, 84, 100)
  """
  for name, value in {
    'rows': rows,
    'groups': groups,
    'max_length': max_length,
    'the number of lengths': np.size(lengths),
  }.items():
    if value < 1:
      raise ValueError(f'{name} must be at least 1, not {value}')
  counts = np.bincount(np.minimum(lengths, max_length))
  share = np.cumsum(counts) / np.sum(counts)
  widths = []
  for g in range(groups - 1):
    rank = rows * (g + 1) // groups
    fits = scipy.special.bdtr(rank - 1, rows, share) < chance
    # The first length that fits; the last always does. A group may be empty.
    width = max(int(np.argmax(fits)), 1) if rank else 1
    widths.append(min(math.ceil(width / 4) * 4, max_length))
  return (*widths, max_length)


def _groups(
  rows: int, widths: tuple[int, ...]
) -> tuple[tuple[int, int, int], ...]:
  """(start, stop, width) of the groups; those of one width are one."""
  count = len(widths)
  stops = {width: rows * (g + 1) // count for g, width in enumerate(widths)}
  starts = (0, *stops.values())[:-1]
  spans = zip(starts, stops.values(), stops, strict=True)
  return tuple(span for span in spans if span[0] < span[1])


def _fits(
  lengths: Int[Array, 'rows'], groups: tuple[tuple[int, int, int], ...]
) -> Bool[Array, '']:
  """Whether the sorted lengths are within the widths of their groups."""
  last = np.array([stop - 1 for _, stop, _ in groups])
  return jnp.all(lengths[last] <= np.array([width for *_, width in groups]))


def _encode_groups(
  encode: Callable[..., Any],
  groups: tuple[tuple[int, int, int], ...],
  order: Int[Array, 'rows'],
  items: Int[Array, 'rows length'],
  *args: Any,
) -> Any:
  items, args = _rows_of((items, args), order)
  parts = [
    encode(items[start:stop, :width], *_rows_of(args, slice(start, stop)))
    for start, stop, width in groups
  ]
  back = jnp.argsort(order)
  return jax.tree.map(lambda *x: jnp.concatenate(x)[back], *parts)


def _rows_of(tree: Any, rows: Array | slice) -> Any:
  return jax.tree.map(operator.itemgetter(rows), tree)


def _encode_whole(
  encode: Callable[..., Any],
  order: Int[Array, 'rows'],
  items: Int[Array, 'rows length'],
  *args: Any,
) -> Any:
  del order
  return encode(items, *args)
