"""Runs in processes of their own: killed, started again, the same bits."""

import signal
import time

import pytest
from tiny_runs import (
  assert_same_run,
  files,
  finetune_settings,
  lines,
  pretrain_settings,
  start,
)

pytestmark = pytest.mark.slow
SECONDS = 90


def finish(module, settings):
  process = start(module, settings)
  output, _ = process.communicate(timeout=SECONDS)
  assert process.returncode == 0, output
  return output


def kill_after(module, settings, count):
  """Kills a command as soon as its metrics have this many lines."""
  process = start(module, settings)
  deadline = time.monotonic() + SECONDS
  while time.monotonic() < deadline and process.poll() is None:
    try:
      if len(lines(settings.workdir)) >= count:
        break
    except (FileNotFoundError, ValueError):
      pass  # Not there yet, or half a line.
    time.sleep(0.002)
  process.kill()
  output, _ = process.communicate()
  assert process.returncode == -signal.SIGKILL, output


def survive(module, make_settings, tmp_path, counts):
  whole, killed = make_settings(tmp_path / 'a'), make_settings(tmp_path / 'b')
  finish(module, whole)
  for count in counts:
    kill_after(module, killed, count)
  output = finish(module, killed)
  assert 'goes on at step' in output
  assert_same_run(killed.workdir, whole.workdir)
  return whole, killed


def test_pre_training_survives_being_killed(tmp_path, data_dir):
  def settings(folder):
    return pretrain_settings(
      folder, data_dir, num_steps=120, checkpoint_every=3, log_every=1
    )

  # The second and third are killed while the first steps are done again.
  _, killed = survive('pretrain', settings, tmp_path, [2, 40, 41, 90])
  assert 'finished at step 120' in finish('pretrain', killed)


def test_fine_tuning_survives_being_killed(tmp_path, data_dir):
  def settings(folder):
    return finetune_settings(
      folder, data_dir, num_epochs=30, checkpoint_every=3, log_every=1
    )

  whole, killed = survive('finetune', settings, tmp_path, [30, 80])
  results = [files(run.workdir)['result.json'] for run in (whole, killed)]
  assert results[0] == results[1]
  assert 'finished, see result.json' in finish('finetune', killed)
