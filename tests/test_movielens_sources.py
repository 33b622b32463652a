"""The places where a copy of MovieLens is searched."""

import pathlib
import socket
import threading
import time

import pytest
import tensorflow_datasets as tfds

from adaptssr_jax.data import DataError, load
from adaptssr_jax.data.movielens_users import MovielensUsers
from adaptssr_jax.data.readers import sources
from adaptssr_jax.data.readers.movielens_files import EDITIONS, read
from adaptssr_jax.data.readers.sources import MissingSourceError, find_file
from tests.synthetic_movielens import (
  SIZES,
  grouplens_files,
  write_zip,
)


@pytest.fixture(name='manager')
def _manager(tmp_path):
  (tmp_path / 'manual').mkdir()
  return tfds.download.DownloadManager(
    download_dir=tmp_path / 'downloads',
    manual_dir=tmp_path / 'manual',
    manual_dir_instructions='the zip',
  )


@pytest.fixture(name='offline')
def _offline(monkeypatch):
  """Simulates a machine without network."""
  monkeypatch.setattr(sources, '_why_unreachable', lambda *_: 'no answer')


def find(edition, manager):
  return find_file(
    edition.package,
    manager,
    own=edition.names,
    url=edition.url,
    sha256=MovielensUsers.url_infos[edition.url].checksum,
  )


@pytest.mark.parametrize('size', SIZES)
def test_without_any_copy_the_error_says_what_to_do(manager, offline, size):
  with pytest.raises(MissingSourceError) as error:
    find(EDITIONS[size], manager)
  message = str(error.value)
  assert f'https://files.grouplens.org/datasets/movielens/ml-{size}' in message
  assert str(manager.download_dir) in message
  # The message of TFDS about the empty manual folder is included.
  assert f'{manager.download_dir.parent}/manual does not exist' in message
  assert 'no answer' in message
  command = (
    f'--dest={manager.download_dir} {EDITIONS[size].package.requirement}\n'
  )
  assert command in message


def test_the_error_reaches_the_caller_of_load(tmp_path, offline):
  builder = tfds.builder('movielens_users/1m_gender', data_dir=tmp_path)
  with pytest.raises(MissingSourceError, match='cannot be found') as error:
    load(builder)
  assert error.value.package is EDITIONS['1m'].package
  assert error.value.folder == tmp_path / 'downloads'


def test_files_of_the_user_come_first_and_a_zip_before_a_folder(
  manager, offline, monkeypatch
):
  monkeypatch.setattr(sources, 'check_sha256', lambda *_: None)
  edition = EDITIONS['100k']
  manual = pathlib.Path(manager.download_dir).parent / 'manual'
  places = [
    pathlib.Path(manager.download_dir) / 'ml-100k.zip',
    manual / 'recbole-1.2.1-py3-none-any.whl',
    manual / 'ml-100k',
    manual / 'ml-100k.zip',
  ]
  for place in places:  # each is preferred to those before it
    place.touch()
    assert find(edition, manager) == place


def test_a_wheel_of_another_release_is_refused(manager, offline):
  name = EDITIONS['1m'].package.file
  path = pathlib.Path(manager.download_dir) / name
  path.write_bytes(b'something else')
  with pytest.raises(DataError, match=f'{name} has the sha256 .* expected'):
    find(EDITIONS['1m'], manager)


def test_a_folder_named_like_the_wheel_is_named(manager, offline):
  folder = pathlib.Path(manager.download_dir).parent / 'manual'
  path = folder / EDITIONS['1m'].package.file
  path.mkdir()
  with pytest.raises(DataError, match=f'{path} cannot be read .Is a directory'):
    find(EDITIONS['1m'], manager)


def test_a_zip_that_is_no_download_is_refused_among_downloads(manager, offline):
  name = EDITIONS['1m'].names[0]
  path = pathlib.Path(manager.download_dir) / name
  write_zip(path, grouplens_files('1m'))
  with pytest.raises(DataError, match=f'{name} has the sha256 .* expected'):
    find(EDITIONS['1m'], manager)


def test_a_download_from_grouplens_is_kept(manager, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, 'check_sha256', lambda *_: None)
  zipped = write_zip(tmp_path / 'a.zip', grouplens_files('100k'))
  asked = []
  monkeypatch.setattr(sources, '_why_unreachable', lambda *_: '')
  monkeypatch.setattr(
    manager, 'download', lambda url: asked.append(url) or zipped
  )
  edition = EDITIONS['100k']
  first = find(edition, manager)
  second = find(edition, manager)
  assert asked == [edition.url]
  assert first == second
  assert first.read_bytes() == zipped.read_bytes()
  assert len(read(first, edition).behaviours)


def test_a_download_that_breaks_off_is_an_answer(manager, monkeypatch):
  def fail(url):
    raise OSError('broken pipe')

  monkeypatch.setattr(sources, '_why_unreachable', lambda *_: '')
  monkeypatch.setattr(manager, 'download', fail)
  with pytest.raises(MissingSourceError, match=r'ml-1m\.zip: broken pipe'):
    find(EDITIONS['1m'], manager)


def test_a_host_that_accepts_and_is_mute_is_given_up():
  with socket.create_server(('127.0.0.1', 0)) as server:
    url = f'http://127.0.0.1:{server.getsockname()[1]}/ml-1m.zip'
    start = time.monotonic()
    assert sources._why_unreachable(url, 0.3)
    assert time.monotonic() - start < 3


def test_a_mute_name_server_is_given_up(monkeypatch):
  over = threading.Event()

  def mute(*_, **__):
    over.wait(30)
    raise OSError('no name server')

  monkeypatch.setattr(sources.urllib.request, 'urlopen', mute)
  start = time.monotonic()
  silence = sources._why_unreachable('http://nowhere/', 0.1)
  assert silence == 'no answer in 0.1 s'
  assert time.monotonic() - start < 20
  over.set()


def test_a_host_that_talks_another_protocol_is_given_up():
  with socket.create_server(('127.0.0.1', 0)) as server:
    url = f'http://127.0.0.1:{server.getsockname()[1]}/ml-1m.zip'
    answer = threading.Thread(target=_greet_as_mail_server, args=(server,))
    answer.start()
    assert '220 mail ready' in sources._why_unreachable(url, 10.0)
    answer.join()


def _greet_as_mail_server(server):
  client, _ = server.accept()
  with client:
    client.recv(4096)
    client.sendall(b'220 mail ready\r\n')


def test_an_unknown_host_says_so():
  assert sources._why_unreachable('http://nowhere.invalid/', 5.0)


def test_grouplens_checksums_are_registered():
  for edition in EDITIONS.values():
    info = MovielensUsers.url_infos[edition.url]
    assert len(info.checksum) == 64
    assert info.filename == edition.names[0]
