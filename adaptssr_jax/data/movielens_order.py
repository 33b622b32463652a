"""The order of MovieLens ratings, and the numbers of films."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.movielens_files import Log


def by_user(log: Log) -> tuple[np.ndarray, Ragged]:
  """Each user's ratings in order of time, and of the file in the same second.

  Args:
    log: all ratings.

  Returns:
    The user numbers in order, and the positions in the log of the ratings of
    each of them, oldest first.
  """
  # Sorting is stable: ratings of the same second stay in the file's order.
  order = np.lexsort((log.time, log.user))
  user, counts = np.unique(log.user, return_counts=True)
  return user, Ragged.from_lengths(order, counts)


def number_names(names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
  """Numbers names from 0 by first appearance: the numbers, and the names.

  Example:
    >>> numbers, names = number_names(['b', 'a', 'b'])
    >>> numbers.tolist(), names
    ([0, 1, 0], ['b', 'a'])
  """
  known: dict[str, int] = {}
  numbers = [known.setdefault(name, len(known)) for name in names]
  return np.array(numbers, np.int32), list(known)
