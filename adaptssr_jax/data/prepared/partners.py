"""Another user whose last item is the same, drawn for each of a batch."""

import numpy as np

from adaptssr_jax.data.ragged import Ragged, RaggedView

# Users whose last items are read at once.
_BLOCK = 65_536


def by_last_item(items: Ragged | RaggedView) -> Ragged:
  """The users who have each item as their last one.

  Args:
    items: the behaviours of each user, item numbers from 1.

  Returns:
    Of each item number the users, ascending, int32. A user with fewer than two
    behaviours, of whom nothing is left without the last one, is nowhere.

  Example:
    >>> users = by_last_item(Ragged.from_rows([[1, 3], [3], [2, 3], [3, 1]]))
    >>> users[3].tolist(), users[1].tolist()
    ([0, 2], [3])
  """
  last = np.zeros(len(items), np.int32)
  for start in range(0, len(items), _BLOCK):
    rows = np.arange(start, min(start + _BLOCK, len(items)))
    last[rows] = _last_of(items, rows)
  counts = np.bincount(last)
  counts[:1] = 0
  # A stable sort leaves the users of an item in order; 0, of nobody, is first.
  users = np.argsort(last, kind='stable')[len(last) - counts.sum() :]
  return Ragged.from_lengths(users.astype(np.int32), counts)


def draw_partners(
  items: Ragged | RaggedView,
  by_last: Ragged,
  rows: np.ndarray,
  draws: np.ndarray,
) -> np.ndarray:
  """Another user with the same last item, all equally likely.

  Args:
    items: the behaviours of each user.
    by_last: of `by_last_item`, of the same users.
    rows: users, int [n].
    draws: a number in [0, 1) for each, float64 [n].

  Returns:
    int [n], the users who are drawn; the user, where there is no other.

  Example:
    >>> items = Ragged.from_rows([[1, 3], [3], [2, 3], [3, 1]])
    >>> rows = np.arange(4)
    >>> draw_partners(items, by_last_item(items), rows, np.zeros(4)).tolist()
    [2, 1, 0, 3]

  Reference:
    Qiu et al., "Contrastive Learning for Representation Degeneration Problem in
    Sequential Recommendation" (DuoRec), WSDM 2022. There every prefix of a
    sequence is one of its own, whose target is the item after it.
  """
  last = _last_of(items, rows)
  others = by_last.lengths_of(last) - 1
  place = by_last.offsets[last] + (draws * others).astype(np.int64)
  has_other = others > 0
  place = np.where(has_other, place, 0)
  if not len(by_last.values):
    return rows
  # The users are in order: from the place of the user on, one further.
  partner = by_last.values[place]
  place += has_other & (partner >= rows)
  return np.where(has_other, by_last.values[place], rows)


def _last_of(items: Ragged | RaggedView, rows: np.ndarray) -> np.ndarray:
  """The last item of users with two behaviours or more, else 0."""
  last = items.padded(rows, 1)[:, 0]
  return np.where(items.lengths_of(rows) > 1, last, 0)
