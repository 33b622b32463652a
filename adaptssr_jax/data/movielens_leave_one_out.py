"""MovieLens as next-item recommendation is published: leave one out.

Of each viewer the last film is the test and the one before it the validation,
each guessed from all films before it. What is learned from behaviours alone is
learned from all but these two. Films are items and targets alike, numbered over
the whole data set, so that target t is item t + 1; those of a viewer's history
are left out of the ranking.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptssr_jax.data.histories import in_order_of_time, number_names
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.movielens_files import Log
from adaptssr_jax.data.rows import Rows, Vocabulary

# A film to train on and the two held out, with something before them.
_LEAST = 4
# How many films at the end of a viewer come after each row's history.
_AFTER_HISTORY = {'train': 3, 'validation': 2, 'test': 1}


class Sequences(NamedTuple):
  """The films of each user, in order.

  Args:
    user_id: of each row, shuffled, always in the same way.
    films: numbers from 0, oldest first.
    names: of the films, by their numbers.
    left_out: how many users have too few ratings.
  """

  user_id: list[str]
  films: Ragged
  names: list[str]
  left_out: int


def sequences_of(log: Log) -> Sequences:
  """Orders each user's films in time; users of fewer than 4 are left out."""
  user, ratings = in_order_of_time(log.user, log.time)
  numbers, names = number_names(log.item[at] for at in ratings.values)
  kept = np.flatnonzero(ratings.lengths >= _LEAST)
  # Else few training rows would be those of the oldest accounts.
  kept = np.random.default_rng(0).permutation(kept)
  return Sequences(
    user_id=[str(number) for number in user[kept]],
    films=Ragged(numbers, ratings.offsets).take(kept),
    names=names,
    left_out=len(user) - len(kept),
  )


def sequence_rows(
  sequences: Sequences,
) -> tuple[dict[str, Rows], Vocabulary]:
  """What is learned from: all films of a user but the last two.

  Validation has the same users with one film more, so that it can measure how
  well that one is guessed, which is the last of its rows. An objective that
  looks at all of a row is validated on what it was trained on.

  Returns:
    The splits `train` and `validation`, and the vocabulary.
  """
  splits = {
    name: Rows(sequences.user_id, Ragged.from_rows(_items(sequences, left)))
    for name, left in (('train', 2), ('validation', 1))
  }
  return splits, Vocabulary(sequences.names)


def next_item_rows(
  sequences: Sequences,
) -> tuple[dict[str, Rows], Vocabulary]:
  """One example a user in each split: a history and the film that follows.

  Returns:
    The splits, in which the last film but two, the last but one and the last
    are the positives, and the vocabulary.
  """
  splits = {}
  for name, after in _AFTER_HISTORY.items():
    targets = Ragged.from_rows(_targets(sequences, after))
    items = Ragged.from_rows(_items(sequences, after))
    rows = Rows(sequences.user_id, items, targets=targets)
    # The first target of each user.
    splits[name] = rows.with_positives(targets.offsets[:-1])
  return splits, Vocabulary(sequences.names, sequences.names)


def _items(sequences: Sequences, left: int) -> list[np.ndarray]:
  """The items of each user but the last ones."""
  films = sequences.films
  return [films[row][:-left] + 1 for row in range(len(films))]


def _targets(sequences: Sequences, after: int) -> list[np.ndarray]:
  """The positive of each user, then the films of its history."""
  rows = []
  for row in range(len(sequences.films)):
    films = sequences.films[row]
    positive, history = films[-after], np.unique(films[:-after])
    # Of a film that is seen again, the place is asked for all the same.
    rows.append(np.append(positive, history[history != positive]))
  return rows
