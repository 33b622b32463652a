"""After any fault a resumed run ends bit for bit as an undisturbed one.

`python -m tests.faults` injects each of these faults many times.
"""

import pytest

from tests.faults.inject import (
  TINY,
  disk_full,
  kill,
  make_environment,
  new_run,
  next_fault_follows,
  one_of_two_has_no_room,
  one_of_two_killed,
  one_of_two_told_to_stop,
  resume,
  resume_alone,
  some_data,
  some_save,
  some_step,
  told_to_stop,
  told_to_stop_early,
  two_at_once,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def env(tmp_path_factory, data_dir):
  return make_environment(tmp_path_factory.mktemp('env'), data_dir)


def test_a_run_killed_again_and_again(env):
  unprepared = env._replace(data_dir=str(env.folder / 'data'))
  run = new_run(unprepared, 'killed', 0)
  # The next start removes what a killed save has left.
  for moment in (some_data, some_save, some_step):
    kill(run, moment)
  redone, _ = resume(run)
  # The steps since the last save, and those done while it was written.
  assert 0 <= redone <= 2 * run.settings.checkpoint_every


def test_a_run_told_to_stop_without_room_and_started_twice(env):
  run = new_run(env, 'alone', 1)
  for fault in (told_to_stop_early, told_to_stop, disk_full):
    fault(run, then=next_fault_follows)
  assert two_at_once(run) == 0


def test_two_processes_of_which_one_stops_has_no_room_or_is_killed(env):
  run = new_run(env, 'two', 1)
  for fault in (one_of_two_told_to_stop, one_of_two_has_no_room):
    fault(run, then=next_fault_follows)
  # One process resumes from what two have saved.
  redone = one_of_two_killed(run, then=resume_alone)
  assert 0 <= redone <= 2 * TINY['checkpoint_every']
