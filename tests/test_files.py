"""Files are written completely or not at all; locks of files."""

import signal
import subprocess
import sys

import filelock
import pytest

from adaptssr_jax import files
from tests.tiny_runs import ROOT


def test_a_lock_is_held_by_one_and_given_back(tmp_path):
  path = tmp_path / 'lock'
  with files.locked(path) as is_held:
    assert is_held
    with pytest.raises(filelock.Timeout), files.locked(path):
      pass
  with files.locked(path) as is_held:
    assert is_held


def test_a_lock_is_waited_for_once_that_is_said(tmp_path):
  path = tmp_path / 'lock'
  holder = filelock.FileLock(path)
  holder.acquire()
  told = []

  def on_wait():
    told.append('waits')
    holder.release()

  with files.locked(path, on_wait=on_wait) as is_held:
    assert is_held
  assert told == ['waits']


def test_a_killed_process_gives_its_lock_back(tmp_path):
  path = tmp_path / 'lock'
  code = f"""
import os, signal
from adaptssr_jax import files
with files.locked({str(path)!r}) as is_held:
  os.kill(os.getpid(), signal.SIGKILL if is_held else signal.SIGTERM)
"""
  killed = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False)
  assert killed.returncode == -signal.SIGKILL
  with files.locked(path) as is_held:
    assert is_held


def test_a_file_system_without_locks_is_told_from_a_folder_without_access(
  tmp_path, monkeypatch
):
  def fail(*_, **__):
    raise OSError('no locks available')

  monkeypatch.setattr(filelock.FileLock, 'acquire', fail)
  with files.locked(tmp_path / 'lock') as is_held:
    assert not is_held
  with pytest.raises(FileNotFoundError), files.locked(tmp_path / 'no' / 'lock'):
    pass


def write_half(path):
  with files.atomic_path(path, suffix='.mine') as aside:
    aside.write_text('half')
    raise KeyboardInterrupt


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'file'
  path.write_text('old')
  with pytest.raises(KeyboardInterrupt):
    write_half(path)
  assert path.read_text() == 'old'
  with files.atomic_path(path) as aside:
    aside.write_text('new')
    assert path.read_text() == 'old'
  assert path.read_text() == 'new'
  assert list(tmp_path.iterdir()) == [path]
