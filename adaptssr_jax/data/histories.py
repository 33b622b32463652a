"""Turns logs into histories: sorts them, numbers items, holds out the last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import Rows


def in_order_of_time(
  user: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, Ragged]:
  """Groups behaviours by user, in order of time.

  Args:
    user: number of the user of each behaviour, in the order of the file.
    time: time of each behaviour.

  Returns:
    The user numbers, ascending, and for each user the positions of its
    behaviours in the file, oldest first.
  """
  # The sort is stable: behaviours of the same time stay in the file's order.
  order = np.lexsort((time, user))
  user, counts = np.unique(user, return_counts=True)
  return user, Ragged.from_lengths(order, counts)


def hold_out(behaviours: Ragged, last: int) -> tuple[Ragged, np.ndarray]:
  """Splits off the last behaviours of each user.

  Args:
    behaviours: of each user, more than `last`.
    last: the number of behaviours to split off.

  Returns:
    The earlier behaviours of each user, and the last ones, [users, last].
  """
  held = behaviours.offsets[1:, None] + np.arange(-last, 0)
  is_before = np.ones(len(behaviours.values), bool)
  is_before[held] = False
  before = Ragged.from_lengths(
    behaviours.values[is_before], behaviours.lengths - last
  )
  return before, behaviours.values[held]


def number_names(
  names: Sequence[str] | pa.Array,
) -> tuple[np.ndarray, list[str]]:
  """Numbers names from 0 by first appearance; returns numbers and names.

  Example:
    >>> numbers, names = number_names(['b', 'a', 'b'])
    >>> numbers.tolist(), names
    ([0, 1, 0], ['b', 'a'])
  """
  encoded = pa.array(names, pa.string()).dictionary_encode()
  return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def history_rows(
  user_id: Iterable[object], item: pa.Array, behaviours: Ragged
) -> tuple[Rows, list[str]]:
  """Builds rows, with items numbered by first appearance in the rows.

  Args:
    user_id: user id of each row, converted to text.
    item: raw name of the item of each behaviour in the file.
    behaviours: for each row, the positions of its behaviours in the file,
      oldest first.

  Returns:
    The rows, and the raw names of the items in the order of their numbers.
  """
  numbers, names = number_names(item.take(pa.array(behaviours.values)))
  items = Ragged(numbers + 1, behaviours.offsets)
  return Rows([str(user) for user in user_id], items), names
