"""What holds for all tables of a data set: places, order of times, classes."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptssr_jax.data.readers.tables import (
  Columns,
  place,
)
from adaptssr_jax.data.rows import DataError

# Rows are counted on in the next file from here: no file has as many.
FILE = 1 << 40
# A float holds every integer up to here.
EXACT = 2**53


class Tables(NamedTuple):
  """Files, whose rows count one after the other, and what is read of each.

  The columns of behaviours are called user_id, item_id and, if it is there,
  label; those of labels user_id and label.
  """

  paths: Sequence[pathlib.Path]
  columns: Columns

  def place(self, row: int) -> str:
    """The file and the line of a row of the database, for messages."""
    return place(self.paths[row // FILE], row % FILE)

  def __str__(self) -> str:
    return ', '.join(map(str, self.paths))


def no_label(events: Tables) -> DataError:
  """What is wrong where no user is left for a task."""
  return DataError(
    f'no user of the events has a label ({events}); are the user ids of the '
    'labels written like those of the events?'
  )


def no_row(tables: Tables) -> DataError:
  """What is wrong where a condition leaves no row."""
  return DataError(
    f'no row of {tables} meets the condition {tables.columns.where!r}'
  )


def sort_key(
  events: Tables,
  moment: int | None,
  other: int | None,
  real: int | None,
  rounded: int | None,
  value: int | None,
) -> str:
  """SQL of what orders the behaviours of a user, where all are comparable.

  Args:
    moment: the first row whose time is a moment, if any.
    other: the first whose time is none.
    real: the first whose time is a floating-point number.
    rounded: the first whose time is an integer that a float does not hold.
    value: that time.

  Raises:
    DataError: some times cannot be compared with others.
  """
  if moment is not None and other is not None:
    first, second = sorted([moment, other])
    kind = 'timestamp' if first == moment else 'number'
    raise DataError(
      f'{events.place(second)}: the time is not a {kind}, as it is in '
      f'{events.place(first)}; all must be of one kind'
    )
  if real is not None and rounded is not None:
    raise DataError(
      f'{events.place(rounded)}: time {value} is an integer that would be '
      f'rounded, because that in {events.place(real)} is none; write all times '
      'as integers or as timestamps'
    )
  if moment is not None:
    return 'moment'
  return 'number' if real is None else 'coalesce(real, number::double)'


def class_names(names: Collection[str]) -> list[str]:
  """Distinct labels in order: by value if all are integers.

  Example:
    >>> class_names(['10', '9']), class_names(['10', '9', 'x'])
    (['9', '10'], ['10', '9', 'x'])
  """
  integers = all(re.fullmatch('[+-]?[0-9]+', name) for name in names)
  return sorted(names, key=lambda name: (int(name) if integers else 0, name))


def class_numbers(
  labels: pa.ChunkedArray, classes: Sequence[str]
) -> np.ndarray:
  """The class of each label, int32."""
  names = pa.array(classes, labels.type)
  return pc.index_in(labels, value_set=names).to_numpy().astype(np.int32)
