"""Whatever happens to a run, it ends as if it had not: to the bit.

Each injury alone, and those that tests in this process do, are done many times
by `python -m tests.faults`.
"""

import random

import pytest

from tests.faults.injuries import (
  TINY,
  Victim,
  disk_full,
  go_on,
  is_hurt_again,
  kill,
  one_of_two_has_no_room,
  one_of_two_killed,
  one_of_two_told_to_stop,
  open_ward,
  settings_of,
  some_data,
  some_save,
  some_step,
  some_time,
  told_to_stop,
  told_to_stop_early,
  two_at_once,
  victim_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def ward(tmp_path_factory, data_dir):
  return open_ward(tmp_path_factory.mktemp('ward'), data_dir)


def test_a_run_killed_again_and_again(ward):
  settings = settings_of(ward.folder / 'killed', str(ward.folder / 'made'))
  victim = Victim(settings, ward.whole, ward.seconds, random.Random(0))
  for moment in (some_data, some_time, some_step, some_save):
    kill(victim, moment)
  redone, _ = go_on(victim)
  # The steps since the last save, while which one more may be done.
  assert 0 <= redone <= 2 * settings.checkpoint_every


def test_a_run_told_to_stop_without_room_and_started_twice(ward):
  victim = victim_of(ward, 'alone', 1)
  for injury in (told_to_stop_early, told_to_stop, disk_full):
    injury(victim, then=is_hurt_again)
  assert two_at_once(victim) == 0


def test_two_processes_of_which_one_stops_has_no_room_or_is_killed(ward):
  victim = victim_of(ward, 'two', 1)
  for injury in (one_of_two_told_to_stop, one_of_two_has_no_room):
    injury(victim, then=is_hurt_again)
  assert 0 <= one_of_two_killed(victim) <= 2 * TINY['checkpoint_every']
