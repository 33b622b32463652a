"""A run that is asked to stop saves, and resumes with equal results."""

import errno
import functools
import os
import signal
import subprocess
import sys

import pytest

from adaptssr_jax.checkpoint.checkpoints import Checkpoints
from experiments import finetune, pretrain
from experiments.run.interruption import (
  Interrupted,
  asked_to_stop,
  defer_signals,
  handle_signals,
)
from experiments.run.progress import Progress
from tests.tiny_runs import (
  ROOT,
  assert_same_run,
  finetune_settings,
  pretrain_settings,
  saved_steps,
)


@pytest.fixture(autouse=True)
def with_a_terminal():
  """SIGHUP is not ignored, although `nohup` may have started the tests."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_signal_ends_what_does_not_ask(number):
  before = signal.getsignal(number)
  with (
    pytest.raises(Interrupted, match=f'stopped by {number.name}$'),
    handle_signals(),
  ):
    signal.raise_signal(number)
  assert signal.getsignal(number) is before


def test_a_second_signal_does_not_disturb_the_cleanup():
  cleaned = []

  def command():
    try:
      signal.raise_signal(signal.SIGTERM)
    finally:
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGHUP)
      cleaned.append('all')

  with pytest.raises(Interrupted), handle_signals():
    command()
  assert cleaned == ['all']


def test_a_signal_does_not_change_the_status_of_what_has_ended():
  code = """
import os, signal
from experiments.run.interruption import ignore_signals
ignore_signals()
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
  os.kill(os.getpid(), number)
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT)
  assert done.returncode == 0


def test_a_stopped_command_ends_without_the_cleanup_of_jax():
  """The cleanup crashes if a compilation was interrupted."""
  code = """
import atexit, os, signal
from experiments.flags.pretraining import PretrainSettings
from experiments.run import command

def main(settings):
  atexit.register(os.abort)
  signal.raise_signal(signal.SIGTERM)

command.run('__main__', PretrainSettings)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'stopped by SIGTERM: give the same command to resume\n'


def asks():
  """Whether to stop, before a notice and after it."""
  before = asked_to_stop(1)
  signal.raise_signal(signal.SIGTERM)
  # A second notice says nothing new.
  signal.raise_signal(signal.SIGTERM)
  return [before, asked_to_stop(2)]


def test_a_signal_waits_where_somebody_asks(capfd):
  answers = []
  with (
    pytest.raises(Interrupted, match='stopped by SIGTERM'),
    handle_signals(),
    defer_signals(),
  ):
    answers += asks()
  assert answers == [False, True]
  assert 'SIGTERM: saving and stopping after' in capfd.readouterr().err


def test_nohup_stays_in_force():
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with handle_signals():
    signal.raise_signal(signal.SIGHUP)
  assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_closed_terminal_cannot_be_told(monkeypatch):
  def write(number, text):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(os, 'write', write)
  with pytest.raises(Interrupted), handle_signals(), defer_signals():
    signal.raise_signal(signal.SIGHUP)


def press_twice():
  signal.raise_signal(signal.SIGINT)
  signal.raise_signal(signal.SIGINT)


def test_who_presses_twice_does_not_want_to_wait():
  with pytest.raises(KeyboardInterrupt), handle_signals(), defer_signals():
    press_twice()


def test_an_old_notice_does_not_stop_the_next_run():
  with pytest.raises(Interrupted), handle_signals():
    signal.raise_signal(signal.SIGTERM)
  assert not asked_to_stop(1)


def tell_after(monkeypatch, step):
  """Sends SIGTERM in this step of the next run."""
  update, done = Progress.update, []

  def count(self, loss):
    update(self, loss)
    done.append(loss)
    if len(done) == step:
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(Progress, 'update', count)


def told_again(checkpoints, *, close):
  signal.raise_signal(signal.SIGTERM)
  close(checkpoints)


def test_pre_training_saves_where_it_is_told_to_stop(
  pretrained, tmp_path, data_dir, monkeypatch
):
  stopped = pretrain_settings(tmp_path / 'b', data_dir)
  with monkeypatch.context() as patch:
    tell_after(patch, 6)
    # A second notice does not end the save.
    close = functools.partialmethod(told_again, close=Checkpoints.close)
    patch.setattr(Checkpoints, 'close', close)
    with (
      pytest.raises(
        Interrupted,
        match=r'b: stopped after step 7 of 9, which is saved$',
      ),
      handle_signals(),
    ):
      pretrain.main(stopped)
  # Neither a multiple of --checkpoint_every, nor of an epoch.
  assert saved_steps(stopped.workdir)[-1] == 7
  pretrain.main(stopped)
  assert_same_run(stopped.workdir, pretrained.workdir)


def test_fine_tuning_that_is_told_late_is_tested_later(
  tmp_path, data_dir, monkeypatch
):
  settings = finetune_settings(tmp_path / 'run', data_dir, num_epochs=1)
  with monkeypatch.context() as patch:
    # In the last step.
    tell_after(patch, 4)
    with pytest.raises(Interrupted), handle_signals():
      finetune.main(settings)
  assert not (tmp_path / 'run' / 'result.json').exists()
  assert saved_steps(settings.workdir)[-1] == 4
  result = finetune.main(settings)
  assert result['best_step'] == 4
  assert 0 <= result['test']['accuracy'] <= 1
