"""Which tasks have the same users with the same histories."""

import hashlib
import itertools
from typing import NamedTuple

import numpy as np

from adaptssr_jax.data import RaggedView, UserArrays, UserData


class Histories(NamedTuple):
  """The rows of a task in an order that does not depend on its labels.

  Args:
    name: the same for all tasks with the same users, histories and items.
    order: the number of the row at each place, [rows].
  """

  name: str
  order: np.ndarray

  @property
  def places(self) -> np.ndarray:
    """The place of each row, by its number, [rows]."""
    return np.argsort(self.order)


def histories_of(data: UserData) -> Histories:
  """The histories of a task with the stored splits.

  Rows are ordered by a digest of the user id and the items, so that tasks which
  only label the same users otherwise agree in the order and in the name.

  Example:
    >>> from adaptssr_jax.data import Ragged, Vocabulary
    >>> users = UserArrays(
    ...   Ragged.from_rows([[65], [66]], np.uint8),
    ...   Ragged.from_rows([[1, 2], [2]]),
    ... )
    >>> task = UserData('age', {'train': users}, Vocabulary(['x', 'y']))
    >>> swap = np.array([1, 0])
    >>> dealt = UserArrays(users.user_id.take(swap), users.items.take(swap))
    >>> other = task._replace(splits={'test': dealt})
    >>> histories_of(other).name == histories_of(task).name
    True
    >>> histories_of(other).order + histories_of(task).order
    array([1, 1])
  """
  digests = [
    hashlib.blake2b(
      user_id.tobytes() + b'\0' + items.astype('<i4').tobytes(), digest_size=16
    ).digest()
    for part in data.splits.values()
    for user_id, items in zip(part.user_id, part.items, strict=True)
  ]
  order = np.array(sorted(range(len(digests)), key=digests.__getitem__))
  whole = hashlib.blake2b(digest_size=6)
  for text in itertools.chain(
    (digests[row] for row in order),
    (f'{item}\0'.encode() for item in data.vocabulary.items),
  ):
    whole.update(text)
  return Histories(f'{len(digests)}_users_{whole.hexdigest()}', order)


def users_in_order(data: UserData, histories: Histories) -> UserArrays:
  """The users at each place, without labels and targets."""
  parts = data.splits.values()
  columns = [part.user_id for part in parts], [part.items for part in parts]
  return UserArrays(
    *(RaggedView(tuple(column), histories.order) for column in columns)
  )
