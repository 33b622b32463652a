"""After any fault a resumed run ends bit for bit as an undisturbed one.

`python -m tests.faults` injects each of these faults many times.
"""

import pytest

from tests.faults.injuries import (
  TINY,
  disk_full,
  go_on,
  go_on_alone,
  is_hurt_again,
  kill,
  newborn_of,
  one_of_two_has_no_room,
  one_of_two_killed,
  one_of_two_told_to_stop,
  open_ward,
  some_data,
  some_save,
  some_step,
  told_to_stop,
  told_to_stop_early,
  two_at_once,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def ward(tmp_path_factory, data_dir):
  return open_ward(tmp_path_factory.mktemp('ward'), data_dir)


def test_a_run_killed_again_and_again(ward):
  unprepared = ward._replace(data_dir=str(ward.folder / 'made'))
  victim = newborn_of(unprepared, 'killed', 0)
  # What is left of a save that was killed is removed by the next start.
  for moment in (some_data, some_save, some_step):
    kill(victim, moment)
  redone, _ = go_on(victim)
  # The steps since the last save, while which one more may be done.
  assert 0 <= redone <= 2 * victim.settings.checkpoint_every


def test_a_run_told_to_stop_without_room_and_started_twice(ward):
  victim = newborn_of(ward, 'alone', 1)
  for injury in (told_to_stop_early, told_to_stop, disk_full):
    injury(victim, then=is_hurt_again)
  assert two_at_once(victim) == 0


def test_two_processes_of_which_one_stops_has_no_room_or_is_killed(ward):
  victim = newborn_of(ward, 'two', 1)
  for injury in (one_of_two_told_to_stop, one_of_two_has_no_room):
    injury(victim, then=is_hurt_again)
  # What two processes saved, one goes on from.
  redone = one_of_two_killed(victim, then=go_on_alone)
  assert 0 <= redone <= 2 * TINY['checkpoint_every']
