"""Who prepares a data set, and when; it is complete or not there."""

import errno
import os
import pathlib
import threading
import time

import filelock
import pytest
import tensorflow_datasets as tfds

from adaptssr_jax.data import (
  DataError,
  SyntheticUsers,
  is_prepared,
  load,
  prepare,
)
from adaptssr_jax.data.prepared import arrays
from experiments.flags.binder import SettingsError
from experiments.flags.shared import DataSettings
from experiments.run import data as datasets
from tests.tiny_runs import files, last_line_of

NAME = 'synthetic_users/tiny_click'


def make(data_dir):
  return tfds.builder(NAME, data_dir=data_dir)


def place(data_dir):
  return pathlib.Path(data_dir, NAME, '2.0.0')


def everything(data_dir):
  """All files of the prepared data set, without the time of preparation."""
  return files(place(data_dir))


def assert_alone(data_dir):
  """Checks that there is nothing but the data set and the lock."""
  beside = {path.name for path in place(data_dir).parent.iterdir()}
  assert beside == {'2.0.0', '.lock'}


@pytest.fixture(name='reads')
def _reads(monkeypatch):
  """Slows reading down, and lists the threads that read."""
  calls = []
  read = SyntheticUsers._read

  def slowly(self, dl_manager):
    calls.append(threading.get_ident())
    time.sleep(0.3)
    return read(self, dl_manager)

  monkeypatch.setattr(SyntheticUsers, '_read', slowly)
  return calls


def load_at_once(data_dir, count=3):
  """Loads the data set in several threads, each with its own builder."""
  found, builders = [], [make(data_dir) for _ in range(count)]

  def one(builder):
    found.append(load(builder))

  threads = [threading.Thread(target=one, args=[each]) for each in builders]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == count
  return found


def test_of_several_at_once_one_prepares_and_all_get_it(tmp_path, reads):
  found = load_at_once(tmp_path)
  assert len(reads) == 1
  assert_alone(tmp_path)
  for users in found[1:]:
    assert users.vocabulary.items == found[0].vocabulary.items
    for split, columns in users.splits.items():
      expected = found[0].splits[split].targets.values
      assert columns.targets.values.tolist() == expected.tolist()


def test_without_locks_the_first_to_end_wins(tmp_path, reads, monkeypatch):
  def fail(*_, **__):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  with monkeypatch.context() as patched:
    patched.setattr(filelock.FileLock, 'acquire', fail)
    load_at_once(tmp_path)
  assert len(reads) == 3
  assert_alone(tmp_path)
  load(make(tmp_path / 'again'))
  assert files(place(tmp_path) / 'arrays') == files(
    place(tmp_path / 'again') / 'arrays'
  )


def test_leftovers_of_this_machine_are_removed(tmp_path):
  parent = place(tmp_path).parent
  for name in (f'{prepare._prefix()}.dead', 'preparing.elsewhere.alive'):
    (parent / name / 'synthetic_users').mkdir(parents=True)
  load(make(tmp_path))
  beside = {path.name for path in parent.iterdir()}
  assert beside == {'2.0.0', '.lock', 'preparing.elsewhere.alive'}


def test_who_waits_for_another_process_is_told_so(tmp_path):
  parent = place(tmp_path).parent
  parent.mkdir(parents=True)
  told, expected = [], f'Waiting for a process that prepares {parent}...'
  waiting = threading.Thread(
    target=load, args=[make(tmp_path)], kwargs={'on_progress': told.append}
  )
  with filelock.FileLock(parent / '.lock'):
    waiting.start()
    for _ in range(500):
      if expected in told:
        break
      time.sleep(0.02)
    assert not is_prepared(make(tmp_path))
  waiting.join()
  assert told[0] == expected
  assert told[1:] == [f'Downloading and preparing {place(tmp_path)}...']
  assert is_prepared(make(tmp_path))


def test_what_is_prepared_is_opened_without_a_lock(tmp_path, monkeypatch):
  assert not is_prepared(make(tmp_path))
  load(make(tmp_path))
  assert is_prepared(make(tmp_path))
  monkeypatch.setattr(arrays, 'prepare', None)
  load(make(tmp_path))


def test_what_tfds_prepared_alone_gets_its_arrays(tmp_path):
  make(tmp_path).download_and_prepare(file_format='array_record')
  assert not is_prepared(make(tmp_path))
  load(make(tmp_path))
  assert_alone(tmp_path)
  load(make(tmp_path / 'other'))
  assert files(place(tmp_path) / 'arrays') == files(
    place(tmp_path / 'other') / 'arrays'
  )


def test_a_folder_without_a_data_set_is_named(tmp_path):
  place(tmp_path).mkdir(parents=True)
  with pytest.raises(DataError, match=f'{place(tmp_path)} is no data set'):
    load(make(tmp_path))


@pytest.mark.parametrize(
  'name', ['items', 'items.lengths', 'targets', 'places', 'user_number']
)
@pytest.mark.parametrize('keep', [0, 0.5, 0.51, None])
def test_arrays_that_were_cut_are_an_error(tmp_path, name, keep):
  load(make(tmp_path))
  path = place(tmp_path) / 'arrays' / 'train' / name
  whole = path.read_bytes()
  if keep is None:
    path.unlink()
  else:
    path.write_bytes(whole[: int(keep * len(whole))])
  with pytest.raises(DataError, match=f'damaged: delete {place(tmp_path)}'):
    load(make(tmp_path))


def test_rankings_of_version_1_are_prepared_anew(tmp_path):
  # A record of version 1 was a pair of a user and a positive.
  old = place(tmp_path).with_name('1.0.0') / 'arrays'
  old.mkdir(parents=True)
  assert not is_prepared(make(tmp_path))
  assert load(make(tmp_path)).name == f'{NAME}/2.0.0'
  assert old.exists()


def test_a_lost_label_is_an_error(tmp_path):
  name = 'synthetic_users/tiny_age'
  load(tfds.builder(name, data_dir=tmp_path))
  (tmp_path / name / '1.0.0' / 'arrays' / 'test' / 'label').unlink()
  with pytest.raises(DataError, match=r'damaged: delete .*tiny_age'):
    load(tfds.builder(name, data_dir=tmp_path))


def test_a_full_disk_is_one_error_of_the_folder(tmp_path, monkeypatch):
  def fail(*_, **__):
    # As ArrayRecord does.
    raise RuntimeError('write() failed: No space left on device; writing a')

  monkeypatch.setattr(datasets.data, 'load', fail)
  match = f'--data_dir={tmp_path} cannot be used .*: make room, or choose'
  with pytest.raises(SettingsError, match=match):
    datasets.open_data(DataSettings(data_dir=str(tmp_path)), 'pretrain')


@pytest.mark.parametrize('folder', ['manual', 'data'])
def test_the_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch, folder):
  def refuse(*_, **__):
    raise PermissionError(13, 'Permission denied', f'{tmp_path}/{folder}/a.zip')

  monkeypatch.setattr(datasets.data, 'load', refuse)
  settings = DataSettings(
    data_dir=f'{tmp_path}/data', manual_dir=f'{tmp_path}/manual'
  )
  flag = f'--{folder}_dir={tmp_path}/{folder} cannot be used .*a.zip'
  with pytest.raises(SettingsError, match=flag):
    datasets.open_data(settings, 'age')


@pytest.mark.slow
def test_killed_at_any_moment_the_next_start_prepares_all_again(tmp_path):
  assert (
    last_line_of(f"""
import os, pathlib, signal
import tensorflow_datasets as tfds
from adaptssr_jax.data import builder, load, prepare
from adaptssr_jax.data.prepared import columns
tfds.disable_progress_bar()

def make(folder):
  return tfds.builder({NAME!r}, data_dir={str(tmp_path)!r} + '/' + folder)

def die(*_, **__):
  os.kill(os.getpid(), signal.SIGKILL)

def contents(folder):
  folder = pathlib.Path(make(folder).data_dir)
  return {{str(path.relative_to(folder)): path.read_bytes()
          for path in folder.rglob('*') if path.is_file()}}

examples_of = builder.examples_of
def some(*rows):
  for number, example in enumerate(examples_of(*rows)):
    if number == 50:
      die()
    yield example

moments = [
  (builder, 'check_rows', die), (builder, 'examples_of', some),
  (prepare, 'write_columns', die), (columns, '_append_to', die),
  (prepare, '_publish', die),
]
for module, name, dies in moments:
  if not os.fork():
    setattr(module, name, dies)
    load(make(name))
    os._exit(0)
  _, status = os.wait()
  assert os.WTERMSIG(status) == signal.SIGKILL, (name, status)
# After all forks, because reading starts threads, which a fork does not copy.
load(make('whole'))
whole = contents('whole')
assert 'arrays/test/targets' in whole
for _, name, _ in moments:
  left = list(pathlib.Path(make(name).data_dir).parent.glob('preparing.*'))
  assert len(left) == 1, (name, left)
  load(make(name))
  assert contents(name) == whole, name
  parent = pathlib.Path(make(name).data_dir).parent
  assert {{path.name for path in parent.iterdir()}} == {{'2.0.0', '.lock'}}
print(len(moments))
""")
    == '5'
  )
