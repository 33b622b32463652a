"""The users of tables, encoded without preparing a data set."""

import pathlib
from collections.abc import Sequence

import numpy as np

from adaptssr_jax.data import Ragged, UserArrays, Vocabulary
from adaptssr_jax.data.user_tables import read_tables
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.run.data import renumbered, tables_config
from experiments.run.process import tell

# Unknown items whose ids are told.
_SHOWN = 3


def read_new_users(
  settings: DataSettings, known: Sequence[str], *, folder: pathlib.Path
) -> UserArrays:
  """The users of --events, their items as numbers of the encoder.

  Tells which items the encoder does not know, and how many behaviours are of
  them: they count as masked, see `experiments.run.encoder.with_items`.

  Args:
    settings: which tables, and which of their columns.
    known: the raw ids of the items of the encoder.
    folder: for what does not fit the memory, which is removed again.

  Returns:
    The users in the order they first appear, without labels.

  Raises:
    DataError: a file is not there, or a row of it is wrong.
    SettingsError: the folder cannot be written.
  """
  config = tables_config(settings, 'pretrain')
  try:
    rows, found = read_tables(config, folder)
  except OSError as error:
    raise SettingsError(
      f'the folder {folder}, for what does not fit the memory, cannot be used '
      f'({error}): write to another'
    ) from error
  items = renumbered(rows.items, found.items, known)
  _tell_of_unknown(items, found, known)
  ids = [np.frombuffer(user.encode(), np.uint8) for user in rows.user_id]
  return UserArrays(Ragged.from_rows(ids, np.uint8), items)


def _tell_of_unknown(
  items: Ragged, found: Vocabulary, known: Sequence[str]
) -> None:
  """Tells how many users there are, and what the encoder does not know."""
  names = set(known)
  unknown = [item for item in found.items if item not in names]
  text = f'the encoder knows all {len(found.items):,} items'
  if unknown:
    some = ', '.join(map(repr, unknown[:_SHOWN]))
    some += ', ...' if len(unknown) > _SHOWN else ''
    text = (
      f'the encoder does not know {len(unknown):,} of {len(found.items):,} '
      f'items ({some}): {np.sum(items.values > len(known)):,} of '
      f'{len(items.values):,} '
      'behaviours are of these, and count as masked'
    )
  tell(f'{len(items):,} users; {text}')
