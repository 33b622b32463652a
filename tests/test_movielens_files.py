"""Both copies of MovieLens give equal data, and damage is an error."""

import pytest
import tensorflow_datasets as tfds

from adaptssr_jax.data import DataError, load
from adaptssr_jax.data.readers.movielens_files import EDITIONS, read
from tests.synthetic_movielens import (
  SIZES,
  TITLES,
  all_tasks,
  assert_read_back,
  grouplens_files,
  plain,
  unpack,
  wheel_files,
  write_zip,
)


@pytest.mark.parametrize('size', SIZES)
def test_every_copy_gives_the_same_rows_and_vocabulary(tmp_path, size):
  edition = EDITIONS[size]
  files = grouplens_files(size)
  copies = [
    read(write_zip(tmp_path / 'a.zip', files), edition),
    read(unpack(tmp_path, files), edition),
    read(write_zip(tmp_path / 'a.whl', wheel_files(size)), edition),
  ]
  first, *others = (all_tasks(log, size) for log in copies)
  for other in others:
    for task, (splits, vocabulary) in first.items():
      assert other[task][1] == vocabulary
      assert list(other[task][0]) == list(splits)
      for split, rows in splits.items():
        assert plain(other[task][0][split]) == plain(rows), (task, split)


def test_films_are_named_by_title_in_1m_and_by_number_in_100k(tmp_path):
  names = {}
  for size in SIZES:
    path = write_zip(tmp_path / f'{size}.zip', grouplens_files(size))
    names[size] = set(read(path, EDITIONS[size]).behaviours['item'].to_pylist())
  assert names['1m'] == set(TITLES.values())
  assert names['100k'] == set(map(str, TITLES))


def test_films_of_one_title_are_one_item(tmp_path):
  files = grouplens_files('1m')
  films = files['ml-1m/movies.dat'].replace(
    b'Film 20 (1920)', b'Film 21 (1921)'
  )
  path = write_zip(tmp_path / 'a.zip', files | {'ml-1m/movies.dat': films})
  names = read(path, EDITIONS['1m']).behaviours['item'].to_pylist()
  assert set(names) == set(TITLES.values()) - {'Film 20 (1920)'}


@pytest.mark.parametrize('task', ['1m_thumb_up', '100k_age', '100k_pretrain'])
def test_a_zip_in_the_manual_folder_is_prepared(tmp_path, task):
  size, key = task.split('_', 1)
  manual = tmp_path / 'manual'
  manual.mkdir()
  name = EDITIONS[size].names[0]
  path = write_zip(manual / name, grouplens_files(size))
  builder = tfds.builder(f'movielens_users/{task}', data_dir=tmp_path)
  data = load(builder, manual_dir=str(manual))
  splits, vocabulary = all_tasks(read(path, EDITIONS[size]), size)[key]
  assert_read_back(data, splits, vocabulary)
  assert builder.info.metadata['source'] == str(path)
  assert builder.info.metadata['users_left_out'] == 1


_LINE = b'1::10::5::900\n'


@pytest.mark.parametrize(
  ('member', 'data', 'message'),
  [
    ('ratings.dat', _LINE + b'1::10::5\n', r'Row #2: .*4 columns, got 3'),
    ('ratings.dat', _LINE + b'1::10::5::9::9\n', r'Row #2: .*got 5'),
    ('ratings.dat', _LINE + b'\n' + _LINE, r'row 2 has a .* not in 1\.\.'),
    ('ratings.dat', _LINE + b'1::10::five::900\n', r'Row #2: .*five'),
    ('ratings.dat', _LINE + b'1::99::5::900\n', r'row 2 has a film that is n'),
    ('ratings.dat', _LINE + b'1::10::6::900\n', r'row 2 .* not in 1\.\.5;'),
    ('ratings.dat', _LINE + b'1::10::0::900\n', r'row 2 .* not in 1\.\.5;'),
    ('ratings.dat', b'1::10::5::-9\n', r'row 1 has a time that is not in 1'),
    ('ratings.dat', b'-1::10::5::900\n', r'row 1 has a user that is not in 1'),
    ('users.dat', b'1::F::180::3::02460\n', r'row 1 .* age .* in 1\.\.120;'),
    ('users.dat', b'4294967296::F::18::3::0\n', r'row 1 has a user that is n'),
    ('ratings.dat', _LINE + b'1::\xff\xfe::5::9\n', r'Row #2: .*invalid UTF8'),
    ('ratings.dat', b'', r'ratings.dat cannot be read \(Empty CSV file\)'),
    (
      'ratings.dat',
      b'77::10::5::900\n',
      r'row 1 has a user who is not in ',
    ),
    ('users.dat', b'1::F::young::3::02460\n', r'users.dat .*Row #1: .*young'),
    ('movies.dat', b'1::Title\n', r'movies.dat .*Row #1: .*columns, got 2'),
  ],
)
def test_a_damaged_line_is_named(tmp_path, member, data, message):
  files = grouplens_files('1m') | {f'ml-1m/{member}': data}
  path = write_zip(tmp_path / 'ml-1m.zip', files)
  with pytest.raises(DataError, match=message) as error:
    read(path, EDITIONS['1m'])
  assert str(path) in str(error.value)
  assert 'again' in str(error.value)


def test_the_header_of_a_wheel_counts_as_a_line(tmp_path):
  edition, files = EDITIONS['1m'], wheel_files('1m')
  for line, message in (
    (b'1m_1\tA\tx\t9\r\n', r"Row #2: .*'x'"),
    (b'1m_1\tA\t9\t9\r\n', r'row 2 has a rating'),
  ):
    files[edition.wheel.ratings.member] = b'header\r\n' + line
    path = write_zip(tmp_path / 'a.whl', files)
    with pytest.raises(DataError, match=message):
      read(path, edition)


def test_a_missing_file_is_named(tmp_path):
  files = grouplens_files('1m')
  del files['ml-1m/users.dat']
  for path in (
    write_zip(tmp_path / 'ml-1m.zip', files),
    unpack(tmp_path, files),
  ):
    with pytest.raises(DataError, match=r'has no ml-1m/users\.dat'):
      read(path, EDITIONS['1m'])


@pytest.mark.parametrize('keep', [0, 40, 0.5])
def test_a_damaged_zip_is_named(tmp_path, keep):
  path = write_zip(tmp_path / 'ml-1m.zip', grouplens_files('1m'))
  whole = path.read_bytes()
  path.write_bytes(whole[: keep if keep >= 1 else int(keep * len(whole))])
  with pytest.raises(DataError, match=r'ml-1m\.zip.* cannot be read'):
    read(path, EDITIONS['1m'])


def test_a_zip_with_flipped_bytes_is_named(tmp_path):
  path = write_zip(tmp_path / 'ml-1m.zip', grouplens_files('1m'))
  whole = bytearray(path.read_bytes())
  whole[100:200] = bytes(100)
  path.write_bytes(whole)
  with pytest.raises(DataError, match=r'cannot be read .*download it again'):
    read(path, EDITIONS['1m'])
