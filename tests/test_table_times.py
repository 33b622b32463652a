"""What becomes of a column of times."""

import datetime

import pyarrow as pa
import pytest

from adaptssr_jax.data.readers.table_times import BadTimeError, parse_times
from adaptssr_jax.data.readers.tables import TEXT


@pytest.mark.parametrize(
  'type_',
  [
    pa.timestamp('s'),
    pa.timestamp('us', 'Asia/Tokyo'),
    pa.date32(),
    pa.date64(),
  ],
)
def test_times_of_parquet_types_become_nanoseconds(type_):
  moments = [datetime.datetime(2020, 1, day) for day in (2, 1)]
  cells = pa.chunked_array([pa.array(moments).cast(pa.timestamp('s'))])
  times = parse_times(cells.cast(type_))
  assert times.kind == 'timestamps'
  assert times.values.tolist() == [1577923200 * 10**9, 1577836800 * 10**9]


def test_timestamps_without_a_zone_are_utc():
  for texts in (
    ['2020-01-01T10:00'] * 2,
    ['2020-01-01T10:00', '2020-01-01 12+02'],
  ):
    times = parse_times(pa.chunked_array([pa.array(texts, TEXT)]))
    assert times.kind == 'timestamps'
    assert times.values.tolist() == [1577872800 * 10**9] * 2


@pytest.mark.parametrize(
  ('cells', 'row'),
  [
    (pa.array([1.0, float('nan')]), 1),
    (pa.array([1.0, 2.0, float('inf')]), 2),
    (pa.array([0, 10**12], pa.timestamp('s')), 1),
    (pa.array(['1', 'x'], TEXT), 1),
    (pa.array(['1', '2020-01-01'], TEXT), 1),
    (pa.array(['2020-01-01', '5'], TEXT), 1),
    (pa.array(['2020-01-01', '2020-13-01'], TEXT), 1),
    (pa.array(['2020-01-01', '9999-12-31'], TEXT), 1),
    (pa.array(['1', 'nan'], TEXT), 1),
    (pa.array(['x', '1'], TEXT), 0),
    (pa.array([True]), 0),
    (pa.array([1, 2**63], pa.uint64()), 1),
    (pa.array(['1', '0x10'], TEXT), 1),
    (pa.array(['1', '1_0'], TEXT), 1),
    (pa.array(['0.5', f'{2**53}', f'{2**53 + 1}'], TEXT), 2),
    (pa.array(['0.5', '0' * 5000 + f'{2**53 + 1}'], TEXT), 1),
    (pa.array([' 1', f' {2**53 + 1}'], TEXT), 1),
    (pa.array(['1', f'{2**63}'], TEXT), 1),
  ],
)
def test_a_time_that_does_not_parse_has_its_row(cells, row):
  with pytest.raises(BadTimeError) as error:
    parse_times(pa.chunked_array([cells]))
  assert error.value.row == row


@pytest.mark.parametrize('type_', [pa.uint64(), TEXT])
def test_large_integers_keep_their_order(type_):
  numbers = [2**63 - 1, 2**63 - 2, 2**53 + 1, 0]
  times = parse_times(pa.chunked_array([pa.array(numbers).cast(type_)]))
  assert times.values.tolist() == numbers


def test_large_floats_are_taken_as_they_are():
  for cells in (pa.array([1e18, 0.5]), pa.array(['1e18', '.5'], TEXT)):
    assert parse_times(pa.chunked_array([cells])).values.tolist() == [1e18, 0.5]
