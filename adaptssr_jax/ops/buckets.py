"""Encodes a batch of sequences of mixed lengths with little padding."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from adaptssr_jax.ops.microbatches import in_microbatches, map_chunks


class Buckets(NamedTuple):
  """How the sequences of a batch are grouped and padded for encoding.

  Args:
    widths: the lengths that groups may be padded to. Each is compiled
      separately.
    size: number of sequences in a group, see `in_microbatches`; None: all.
  """

  widths: tuple[int, ...] = ()
  size: int | None = None


# Number of sequences for which `in_buckets` looks up items at once.
_PIECE = 8192
# Encodes the whole batch at once, at full length.
AT_ONCE = Buckets()


@jax.named_scope('groups')
def in_buckets(
  encode: Callable[..., Any],
  items: Int[Array, 'rows length'],
  *args: Any,
  buckets: Buckets,
  look_up: Callable[[Array], Array] | None = None,
) -> Any:
  """Encodes sequences in groups of similar length, with little padding.

  The rows are sorted by length and divided into groups of `buckets.size`. Each
  group is padded to the smallest of `buckets.widths` that its longest row fits
  in, or to the full length if it fits in none. The results are in the original
  order. A group is encoded again for the gradient, see `in_microbatches`.

  Args:
    encode: (items [m, width], *args) -> arrays [m, ...]. Neither the shapes
      after the first axis nor the values may depend on the width.
    items: `[rows, length]`, ids, 0 at the end for padding.
    *args: further arrays [rows, ...], such as keys.
    buckets: the widths and the size of a group.
    look_up: items [rows, length] -> array [rows, length, ...]. It is called on
      many groups at once; the gradient of a look-up of each group in a large
      table would be a dense array per group. `encode` gets the result, cut like
      the items, as its second argument.

  Returns:
    What `encode(items, *args)` returns.

  Raises:
    ValueError: If the widths are not positive and in order, or `buckets.size`
      is below 1.

  Example:
    >>> items = jnp.array([[3, 4, 5, 6], [7, 0, 0, 0], [8, 9, 0, 0]])
    >>> buckets = Buckets(widths=(1, 2), size=1)
    >>> in_buckets(functools.partial(jnp.sum, axis=1), items, buckets=buckets)
    Array([18,  7, 17], dtype=int32)
  """
  if buckets == AT_ONCE:
    return encode(items, *([look_up(items)] if look_up else []), *args)
  order = jnp.argsort(jnp.sum(items != 0, axis=1))
  items, args = jax.tree.map(operator.itemgetter(order), (items, args))
  group = functools.partial(
    _encode_group, encode, _widths_to(items.shape[1], buckets.widths)
  )

  def encode_piece(
    items: Int[Array, 'rows length'], args: tuple[Any, ...]
  ) -> Any:
    """Looks up and encodes some of the sorted rows."""
    sequences = (items, look_up(items)) if look_up else (items,)
    return map_chunks(group, sequences, args, size=buckets.size)

  # The embeddings of all rows of a large batch might not fit into memory.
  piece = _PIECE if buckets.size else None
  done = in_microbatches(encode_piece, items, args, size=piece)
  return jax.tree.map(operator.itemgetter(jnp.argsort(order)), done)


def _widths_to(length: int, widths: tuple[int, ...]) -> tuple[int, ...]:
  """The widths below the full length, and the full length."""
  if min(widths, default=1) < 1 or list(widths) != sorted(set(widths)):
    raise ValueError(f'widths must be positive and in order, not {widths}')
  return (*(width for width in widths if width < length), length)


def _encode_group(
  encode: Callable[..., Any],
  widths: tuple[int, ...],
  sequences: tuple[Array, ...],
  args: tuple[Any, ...],
) -> Any:
  """Encodes a group at the smallest width that all its sequences fit in."""
  longest = jnp.max(jnp.sum(sequences[0] != 0, axis=1), initial=0)

  # Each width is recomputed for the gradient, which costs less than keeping the
  # activations of all branches of the switch.
  def cut_to(width: int) -> Callable[..., Any]:
    return lambda sequences, args: encode(
      *(x[:, :width] for x in sequences), *args
    )

  programs = [jax.checkpoint(cut_to(width)) for width in widths]
  which = jnp.sum(longest > np.array(widths[:-1], int))
  return lax.switch(which, programs, sequences, args)


def bucket_widths(
  lengths: Int[ArrayLike, 'sequences'], *, programs: int, max_length: int
) -> tuple[int, ...]:
  """Finds the widths with the least padding.

  argmin over w_1 < ... < w_P = max_length of the mean over the lengths n of
  min{w_p : w_p >= n}

  by dynamic programming over the multiples of 4.

  Args:
    lengths: lengths of the sequences that the step will encode, or of a sample
      of them; longer ones are cut to `max_length`.
    programs: P, the maximum number of widths, one or more.
    max_length: the last width.

  Returns:
    The widths, ascending.

  Raises:
    ValueError: If `programs` or `max_length` is not positive, or there are no
      lengths.

  Example:
    >>> lengths = np.array([5, 5, 6, 20, 21, 90])
    >>> bucket_widths(lengths, programs=3, max_length=100)
    (8, 24, 100)
  """
  for name, value in {
    'programs': programs,
    'max_length': max_length,
    'the number of lengths': np.size(lengths),
  }.items():
    if value < 1:
      raise ValueError(f'{name} must be at least 1, not {value}')
  widths = np.array([*range(4, max_length, 4), max_length])
  counts = np.bincount(
    np.searchsorted(widths, np.minimum(lengths, max_length)),
    minlength=len(widths),
  )
  below = np.concatenate([[0], np.cumsum(counts)])
  # cost[i, j] is the cost of encoding the lengths in the cells i to j at the
  # width j.
  cost = (below[1:] - below[:-1, None]) * widths
  cost = np.where(np.triu(np.ones_like(cost)), cost, np.inf)
  best, chosen = cost[0], [[j] for j in range(len(widths))]
  for _ in range(min(programs, len(widths)) - 1):
    # Either i is the width before j, or there is no further width.
    through = best[:-1, None] + cost[1:]
    i = np.argmin(through, axis=0)
    better = through[i, np.arange(len(widths))] < best
    chosen = [
      [*chosen[i[j]], j] if better[j] else chosen[j] for j in range(len(widths))
    ]
    best = np.where(better, through.min(axis=0), best)
  return tuple(int(widths[j]) for j in chosen[-1])
