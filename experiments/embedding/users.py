"""The users to encode: read from tables that are not prepared, and in parts."""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import tqdm

from adaptssr_jax.data import Ragged, UserArrays, Vocabulary
from adaptssr_jax.data.readers.table_users import read_users
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.run.data import renumbered, tables_config
from experiments.run.encoder import OTHER_IDS
from experiments.run.process import is_quiet, print_line

# The number of unknown items that are named.
_SHOWN = 3


def progress(total: int) -> tqdm.tqdm:
  """A progress bar over users, unless --quiet."""
  return tqdm.tqdm(
    total=total,
    unit=' users',
    disable=is_quiet(),
    # Less often without a terminal, to keep logs short.
    mininterval=0.5 if sys.stderr.isatty() else 10.0,
  )


def read_new_users(
  settings: DataSettings, known: Sequence[str], *, folder: pathlib.Path
) -> UserArrays:
  """Reads the users of --events, with items numbered as in the encoder.

  Prints the items that the encoder does not know. They are treated as masked,
  see `experiments.run.encoder.with_items`.

  Args:
    known: the raw ids of the items of the encoder.
    folder: for temporary files of data that do not fit in memory.

  Returns:
    The users in the order in which they first appear, without labels.

  Raises:
    DataError: a file does not exist, or a row of it is invalid.
  """
  config = tables_config(settings, 'pretrain')
  try:
    rows, found, _ = read_users(
      config.events,
      config.labels,
      folder,
      memory_limit=config.memory_limit,
      on_progress=print_line,
    )
  except OSError as error:
    raise SettingsError(
      f'the folder {folder}, for data that do not fit in memory, cannot be '
      f'used ({error}): write to another'
    ) from error
  items = renumbered(rows.items, found.items, known)
  _print_unknown(items, found, known)
  ids = [np.frombuffer(user.encode(), np.uint8) for user in rows.user_id]
  return UserArrays(Ragged.from_rows(ids, np.uint8), items)


def _print_unknown(
  items: Ragged, found: Vocabulary, known: Sequence[str]
) -> None:
  """Prints the number of users, and the items that the encoder lacks."""
  names = set(known)
  unknown = [item for item in found.items if item not in names]
  text = f'the encoder knows all {len(found.items):,} items'
  if unknown:
    some = ', '.join(map(repr, unknown[:_SHOWN]))
    some += ', ...' if len(unknown) > _SHOWN else ''
    text = (
      f'the encoder does not know {len(unknown):,} of {len(found.items):,} '
      f'items ({some}): {np.sum(items.values > len(known)):,} of '
      f'{len(items.values):,} behaviours have such an item, and are treated as '
      'masked'
    )
  print_line(f'{len(items):,} users; {text}')
  if len(unknown) == len(found.items):
    print_line(f'WARNING: all items are unknown. {OTHER_IDS}')


def users_of_part(splits: Sequence[UserArrays], part: str) -> list[UserArrays]:
  """Selects one of several equal parts of the users of all splits together.

  Args:
    part: 'I/N', the I-th of N parts; '' for all users.

  Returns:
    The splits that have users in the part, cut to these users without a copy.
  """
  if not part:
    return list(splits)
  number, count = map(int, part.split('/'))
  total = sum(len(users.items) for users in splits)
  if count > total:
    raise SettingsError(
      f'--part={part}: there are only {total:,} users: take at most that many '
      'parts'
    )
  begin, end = total * (number - 1) // count, total * number // count
  found = []
  for users in splits:
    first, last = max(begin, 0), min(end, len(users.items))
    if first < last:
      columns = [
        Ragged(column.values, column.offsets[first : last + 1])
        for column in (users.user_id, users.items)
      ]
      found.append(UserArrays(*columns))
    begin, end = begin - len(users.items), end - len(users.items)
  return found
