"""The users of tables, encoded without preparing a data set."""

import pathlib
from collections.abc import Sequence

import numpy as np

from adaptssr_jax.data import Ragged, UserArrays, Vocabulary
from adaptssr_jax.data.user_tables import read_tables
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.run.data import tables_config
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
  items = _renumbered(rows.items, found, known)
  ids = [np.frombuffer(user.encode(), np.uint8) for user in rows.user_id]
  return UserArrays(Ragged.from_rows(ids, np.uint8), items)


def _renumbered(
  items: Ragged, found: Vocabulary, known: Sequence[str]
) -> Ragged:
  """The items by their numbers in the encoder, or that of a masked one."""
  number = {item: place for place, item in enumerate(known, 1)}
  mask_id = len(known) + 1
  numbers = np.array([number.get(item, mask_id) for item in found.items])
  values = numbers.astype(np.int32)[items.values - 1]
  unknown = [item for item in found.items if item not in number]
  text = f'the encoder knows all {len(found.items):,} items'
  if unknown:
    some = ', '.join(map(repr, unknown[:_SHOWN]))
    some += ', ...' if len(unknown) > _SHOWN else ''
    text = (
      f'the encoder does not know {len(unknown):,} of {len(found.items):,} '
      f'items ({some}): {np.sum(values == mask_id):,} of {len(values):,} '
      'behaviours are of these, and count as masked'
    )
  tell(f'{len(items):,} users; {text}')
  return Ragged(values, items.offsets)
