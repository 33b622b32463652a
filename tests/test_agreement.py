"""The processes of a run must have the same flags and see the same folder."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from experiments.flags.binder import SettingsError
from experiments.flags.pretraining import PretrainSettings
from experiments.run import agreement
from experiments.run.agreement import check_same_flags, check_shared

ONE = PretrainSettings(coordinator='a:1', num_processes=2, process_id=0)


@pytest.fixture
def of_two(monkeypatch):
  """Makes this process one of two of as many devices."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 1)
  monkeypatch.setattr(agreement, '_SECONDS', 0.0)
  return monkeypatch


def send(of_two, text):
  """The other process sends this text whenever this one sends a text."""

  def process_allgather(own):
    other = np.int32(len(text.encode()))
    if own.dtype != np.int32:
      other = np.frombuffer(text.encode().ljust(len(own), b'\0'), np.uint8)
    both = [own, other] if jax.process_index() == 0 else [other, own]
    return np.stack(both)

  of_two.setattr(multihost_utils, 'process_allgather', process_allgather)


def check_both(of_two, first, second):
  """Checks the settings of process 0, of which process 1 has others."""
  send(of_two, agreement._text(second))
  check_same_flags(first)


def test_flags_of_one_process_are_its_own(of_two):
  other = dataclasses.replace(
    ONE, process_id=1, quiet=True, data_dir='local', workdir='elsewhere'
  )
  check_both(of_two, ONE, other)


def test_other_flags_of_another_process_are_named(of_two):
  other = dataclasses.replace(ONE, process_id=1, seed=3)
  with pytest.raises(SettingsError) as error:
    check_both(of_two, ONE, other)
  assert str(error.value) == (
    'processes 0 and 1 were given different commands: they differ in '
    "--seed='0', --seed='3'. Give the same command to all processes"
  )


@pytest.mark.parametrize('found', ['process 8 on b', None])
def test_a_folder_that_is_not_shared_is_refused(of_two, tmp_path, found):
  path = tmp_path / '.lock_holder'
  path.write_text('process 7 on a')
  send(of_two, '')
  check_shared(path)
  of_two.setattr(jax, 'process_index', lambda: 1)
  send(of_two, 'process 7 on a')
  check_shared(path)
  path.unlink()
  if found:
    path.write_text(found)
  with pytest.raises(SettingsError, match='process 1 does not see the files'):
    check_shared(path)
