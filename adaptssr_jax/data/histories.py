"""Turns logs into histories: sorts them, numbers items, holds out the last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.rows import Rows


class Log(NamedTuple):
  """The behaviours of a data set, and its users.

  Args:
    behaviours: the `user` (a number), the `item` (its raw name), the `time` and
      perhaps more of each behaviour, in the order of the file.
    users: the attributes of each user.
  """

  behaviours: pa.Table
  users: pa.Table


def in_order_of_time(behaviours: pa.Table) -> tuple[np.ndarray, Ragged]:
  """Groups the `behaviours` of a `Log` by user, in order of time.

  Returns:
    The user numbers, ascending, and for each user the positions of its
    behaviours in the file, oldest first.
  """
  user = behaviours['user'].to_numpy()
  # The sort is stable: behaviours of the same time stay in the file's order.
  order = np.lexsort((behaviours['time'].to_numpy(), user))
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
  names: pa.ChunkedArray, at: np.ndarray
) -> tuple[np.ndarray, list[str]]:
  """Numbers the names at some places from 0 by first appearance there.

  Example:
    >>> names, at = pa.chunked_array([['b', 'a']]), np.array([1, 0, 1])
    >>> numbers, names = number_names(names, at)
    >>> numbers.tolist(), names
    ([0, 1, 0], ['a', 'b'])
  """
  encoded = names.combine_chunks().take(pa.array(at)).dictionary_encode()
  return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def history_rows(
  user_id: Iterable[object], item: pa.ChunkedArray, behaviours: Ragged
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
  numbers, names = number_names(item, behaviours.values)
  items = Ragged(numbers + 1, behaviours.offsets)
  return Rows([str(user) for user in user_id], items), names
