"""The folder of a run is created, resumed, or refused."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import subprocess
import threading

import pytest

from adaptssr_jax.data import UserData, Vocabulary
from adaptssr_jax.files import locked
from experiments.flags.binder import SettingsError, from_flagfile
from experiments.flags.finetuning import FinetuneSettings
from experiments.flags.pretraining import PretrainSettings
from experiments.run import workdir
from experiments.run.workdir import (
  METRICS,
  atomic_write,
  opened_workdir,
  write_dataset,
)
from tests.tiny_runs import files


def settings(folder, **changes):
  return PretrainSettings(workdir=str(folder), **changes)


def opened(wanted):
  """The folder of a run that was opened and closed again."""
  with opened_workdir(wanted) as folder:
    return folder


@pytest.fixture
def begun(tmp_path):
  """The folder of a run that has begun to train."""
  folder = opened(settings(tmp_path / 'run', seed=3))
  (folder / METRICS).write_text('{"step": 1}\n')
  return folder


def test_a_folder_is_made_with_the_flags_of_its_run(tmp_path):
  wanted = settings(tmp_path / 'a' / 'b', seed=3, augmentations=('crop',))
  folder = opened(wanted)
  assert [path.name for path in folder.iterdir()] == ['flags.txt']
  assert from_flagfile(PretrainSettings, folder / 'flags.txt') == wanted


def test_an_empty_folder_is_taken(tmp_path):
  assert opened(settings(tmp_path)) == tmp_path


def test_at_most_eight_flags_that_differ_are_named(begun):
  (begun / 'flags.txt').write_text(''.join(f'--old{i}=1\n' for i in range(9)))
  with pytest.raises(SettingsError) as error:
    opened(settings(begun))
  assert str(error.value).count(' was ') == 8
  assert '; and 1 more. Choose another folder' in str(error.value)


@pytest.mark.parametrize('name', ['pretrained', 'init_from'])
def test_a_run_is_not_overwritten_by_one_that_starts_from_it(begun, name):
  types = {'pretrained': FinetuneSettings, 'init_from': PretrainSettings}
  wanted = types[name](workdir=str(begun), **{name: f'{begun}/../run'})
  before = files(begun)
  with pytest.raises(SettingsError, match=f'is the folder of --{name}: choose'):
    opened(wanted)
  assert files(begun) == before


def test_the_same_settings_open_it_again(begun):
  before = files(begun)
  opened(settings(begun, seed=3))
  assert files(begun) == before


def test_other_settings_are_refused_and_named(begun):
  before = files(begun)
  with pytest.raises(SettingsError) as error:
    opened(settings(begun, seed=4, embed_dim=8))
  message = str(error.value)
  assert '--embed_dim was not given, is 8; --seed was 3, is 4.' in message
  assert str(begun) in message
  assert message.count(' was ') == 2
  assert files(begun) == before


def test_a_setting_no_longer_given_is_named(tmp_path):
  folder = opened(settings(tmp_path / 'run', embed_dim=8))
  (folder / METRICS).write_text('{"step": 1}\n')
  with pytest.raises(SettingsError, match='--embed_dim was 8, is not given'):
    opened(settings(folder))


def test_some_settings_may_change_and_the_file_follows(begun):
  longer = settings(
    begun, seed=3, num_steps=9, checkpoint_every=2, data_dir='other'
  )
  opened(longer)
  assert from_flagfile(PretrainSettings, begun / 'flags.txt') == longer


def test_a_folder_that_moved_goes_on(begun):
  moved = begun.rename(begun.with_name('moved'))
  assert opened(settings(moved, seed=3)) == moved


def test_files_of_the_same_data_may_have_moved(begun):
  tables = settings(begun, seed=3, dataset='user_tables', events=('a.csv',))
  (begun / 'flags.txt').write_text(tables.to_flagfile())
  (begun / 'dataset.txt').write_text('user_tables/pretrain_1f/1.0.0\n')
  moved = dataclasses.replace(tables, events=('there/a.csv',))
  for name in ('', 'user_tables/pretrain_2e/1.0.0'):
    with (
      pytest.raises(SettingsError, match=r'--events was a\.csv, is there/a'),
      opened_workdir(moved, name),
    ):
      pass
  with opened_workdir(moved, 'user_tables/pretrain_1f/1.0.0'):
    assert from_flagfile(PretrainSettings, begun / 'flags.txt') == moved


def test_a_run_that_never_began_may_be_given_other_settings(tmp_path):
  """A mistyped data set must not take the folder for ever."""
  opened(settings(tmp_path / 'run', dataset='typo'))
  right = settings(tmp_path / 'run', dataset='ttl')
  folder = opened(right)
  assert from_flagfile(PretrainSettings, folder / 'flags.txt') == right


def test_a_folder_of_other_things_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(SettingsError, match=r'holds files but no flags\.txt'):
    opened(settings(tmp_path))
  assert files(tmp_path) == {'thesis.tex': b'x'}


@pytest.mark.parametrize('below', ['', 'run', 'a/run'])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, below):
  (tmp_path / 'file').write_text('x')
  folder = tmp_path / 'file' / below
  with pytest.raises(SettingsError, match=f'^--workdir={folder} cannot be'):
    opened(settings(folder))


def test_files_are_written_whole_or_not_at_all(tmp_path):
  atomic_write(tmp_path / 'f', 'old')
  with pytest.raises(TypeError):
    atomic_write(tmp_path / 'f', 3)
  assert (tmp_path / 'f').read_text() == 'old'


def test_a_full_disk_is_told_of(tmp_path, monkeypatch):
  folder = opened(settings(tmp_path / 'run'))

  def full(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
  with pytest.raises(SettingsError) as error:
    atomic_write(folder / 'f', 'text')
  assert str(error.value) == (
    f'--workdir={folder} cannot be written (No space left on device): make '
    'room, and give the same command again'
  )


def test_one_run_at_a_time(tmp_path):
  one = settings(tmp_path / 'run', seed=3)
  with opened_workdir(one) as folder:
    before = files(folder)
    with (
      pytest.raises(
        SettingsError,
        match=f'run is in use by process {os.getpid()} on .*: wait until it',
      ),
      opened_workdir(settings(tmp_path / 'run', seed=4)),
    ):
      pass
    assert files(folder) == before
    # Another folder is another run.
    with opened_workdir(settings(tmp_path / 'run' / 'inside')):
      pass
  assert {path.name for path in folder.iterdir()} == {'flags.txt', 'inside'}
  with opened_workdir(one):
    pass


def test_a_run_may_begin_while_somebody_looks_whether_it_is_at_work(tmp_path):
  (tmp_path / '.lock').touch()
  with contextlib.ExitStack() as look:
    look.enter_context(locked(tmp_path / '.lock'))
    threading.Timer(0.02, look.close).start()
    with opened_workdir(settings(tmp_path)):
      assert workdir.is_in_use(tmp_path)
  assert not workdir.is_in_use(tmp_path)


def test_what_a_killed_run_left_of_its_lock_locks_nothing(tmp_path):
  (tmp_path / '.lock').touch()
  (tmp_path / '.lock_holder').write_text('process 1 on moon')
  (tmp_path / 'flags.txt.part').write_text('--see')
  with opened_workdir(settings(tmp_path)) as folder:
    assert f'process {os.getpid()} '.encode() in files(folder)['.lock_holder']
  assert list(files(tmp_path)) == ['flags.txt']


def test_only_the_first_process_writes(begun, monkeypatch):
  monkeypatch.setattr(workdir, 'is_main_process', lambda: False)
  before = files(begun)
  with opened_workdir(settings(begun, seed=4)) as folder:
    assert folder == begun
    write_dataset(folder, dataset(['a']))
    atomic_write(folder / 'f', 'text')
    assert files(begun) == before


def dataset(items, name='made/pretrain/1.0.0'):
  return UserData(name, {}, Vocabulary(items))


def test_a_vocabulary_is_a_json_string_a_line(tmp_path):
  write_dataset(tmp_path, dataset(['7', 'a "b"', 'line\nbreak']))
  assert (tmp_path / 'vocabulary').read_text() == (
    '"7"\n"a \\"b\\""\n"line\\nbreak"\n'
  )


@pytest.mark.parametrize(
  'changed',
  [
    pytest.param(dataset(['a', 'c']), id='other items'),
    pytest.param(dataset(['a', 'b'], 'made/other/1.0.0'), id='another name'),
  ],
)
def test_data_that_changed_under_a_run_is_refused(begun, changed):
  (begun / METRICS).write_text('')
  write_dataset(begun, dataset(['first', 'try']))
  # Nothing was learned yet, so nothing is lost.
  write_dataset(begun, dataset(['a', 'b']))
  (begun / METRICS).write_text('{"step": 1}\n')
  write_dataset(begun, dataset(['a', 'b']))
  before = files(begun)
  with pytest.raises(SettingsError, match='holds a run on other data') as error:
    write_dataset(begun, changed)
  assert str(error.value).endswith(
    f'--init_from={begun} starts from the encoder of this run'
  )
  with pytest.raises(SettingsError, match=r'Choose another folder$'):
    write_dataset(begun, changed._replace(kind='ranking'))
  assert files(begun) == before


def test_a_vocabulary_that_is_no_text_is_one_of_other_data(begun):
  data = dataset(['a'])
  write_dataset(begun, data)
  (begun / 'vocabulary').write_bytes(b'\xff')
  with pytest.raises(SettingsError, match='its vocabulary differs'):
    write_dataset(begun, data)


@pytest.mark.parametrize(
  'name', ['checkpoints/4', 'result.json', 'similarity.json']
)
def test_what_a_command_has_made_binds_to_settings_too(tmp_path, name):
  path = opened(settings(tmp_path / 'run', seed=3)) / name
  path.parent.mkdir(exist_ok=True)
  path.touch()
  with pytest.raises(SettingsError, match='--seed was 3, is 4'):
    opened(settings(tmp_path / 'run', seed=4))


def test_the_commit_is_none_of_a_repository_around_an_installation(
  tmp_path, monkeypatch
):
  git = ('git', '-c', 'user.name=a', '-c', 'user.email=a@b')
  subprocess.run([*git, 'init', '-q'], cwd=tmp_path, check=True)
  words = ('commit', '-q', '--allow-empty', '--no-gpg-sign', '-m', 'theirs')
  subprocess.run([*git, *words], cwd=tmp_path, check=True)
  found = []
  for root in (tmp_path, tmp_path / '.venv'):
    folder = root / 'experiments' / 'run'
    folder.mkdir(parents=True)
    monkeypatch.setattr(workdir, '__file__', str(folder / 'workdir.py'))
    found.append(workdir.commit.__wrapped__())
  assert found[0] != 'unknown'
  assert found[1] == 'unknown'
