"""Reading columns of times in user tables."""

import duckdb
import pyarrow as pa
import pytest

from adaptssr_jax.data.readers.table_sql import check_time_format, with_times
from adaptssr_jax.data.rows import DataError

MOMENT = 1577872800 * 10**9  # 2020-01-01 10:00 UTC


def times(texts, **settings):
  """Of each text the one of its number, real and moment that is not null."""
  cells = pa.table({'t': pa.array(texts, pa.large_string())})
  connection = duckdb.connect()
  connection.register('cells', cells)
  query = with_times('select * from cells', 'text', **settings)
  names = ['number', 'real', 'moment']
  found = connection.sql(f'select {", ".join(names)} from ({query})').fetchall()
  assert all(sum(cell is not None for cell in row) <= 1 for row in found)
  return [
    next(
      ((n, c) for n, c in zip(names, row, strict=True) if c is not None), None
    )
    for row in found
  ]


@pytest.mark.parametrize(
  'text',
  [
    '2020-01-01T10:00',
    '2020-01-01 10',
    ' 2020-01-01 10:00:00.000 ',
    '20200101T100000Z',
    '2020-01-01T10:00:00,000000000Z',
    '2020-01-01 12+02',
    '2020-01-01T04:30:00-05:30',
    '2020-01-01T153000+0530',
  ],
)
def test_timestamps_without_a_zone_are_utc(text):
  assert times([text]) == [('moment', MOMENT)]


def test_no_nanosecond_is_lost():
  texts = [
    f'2020-01-01T12:00:00.{end}+02' for end in ('000000001', '123456789')
  ]
  assert times(texts) == [
    ('moment', MOMENT + 1),
    ('moment', MOMENT + 123456789),
  ]


def test_integers_stay_integers_and_floats_are_the_nearest():
  numbers = [2**63 - 1, -(2**63), 2**53 + 1, 0]
  assert times(map(str, numbers)) == [('number', n) for n in numbers]
  assert times(['+07', ' 5 ', '0' * 5000 + '5']) == [
    ('number', n) for n in (7, 5, 5)
  ]
  texts = ['1e18', '.5', '5.', '-1.5E-3', '0.1']
  assert times(texts) == [('real', float(text)) for text in texts]


@pytest.mark.parametrize(
  'text',
  [
    '', 'soon', 'nan', 'inf', '1e999', '0x10', '1_0', '1 0', f'{2**63}', '٣',
    '2020-13-01', '2020-02-30', '2020-01-01T25', '2020-01-01T10:60',
    '9999-12-31', '0001-01-01', '2020-1-1', '2020-01-01T', '2020-01-01+02',
    '2020-01-01T10:00:00.1234567891', '2020-01-01T10+25', '2020-01-01T10Zx',
  ],
)  # fmt: skip
def test_what_is_no_time_is_none(text):
  assert times([text, '1']) == [None, ('number', 1)]


def test_times_may_have_a_format():
  texts = ['01/02/2020', '1/2/2020', '2020-01-02', '13/01/2020', '5', '']
  moment = ('moment', MOMENT + 14 * 3600 * 10**9)
  found = times(texts, time_format='%m/%d/%Y')
  assert found == [moment, moment, None, None, None, None]
  found = times(
    ["1 o'clock, 1.1.20 +0100"], time_format="%I o'clock, %d.%m.%y %z"
  )
  assert found == [('moment', MOMENT - 10 * 3600 * 10**9)]
  with pytest.raises(DataError, match='cannot be used: Invalid'):
    check_time_format('%Q')


@pytest.mark.parametrize(
  ('kind', 'cells', 'expected'),
  [
    ('real', pa.array([1.5, float('nan'), float('inf')]), [1.5, None, None]),
    ('number', pa.array([2**63 - 1, 2**63], pa.uint64()), [2**63 - 1, None]),
    ('moment', pa.array([1, 10**12], pa.timestamp('s')), [10**9, None]),
    ('moment', pa.array([-1], pa.timestamp('ns')), [-1]),
  ],
)
def test_times_of_parquet_are_in_range(kind, cells, expected):
  connection = duckdb.connect()
  connection.register('cells', pa.table({'t': cells}))
  found = connection.sql(with_times('select * from cells', kind))
  assert found.to_arrow_table()[kind].to_pylist() == expected
