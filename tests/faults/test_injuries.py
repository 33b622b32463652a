"""Whatever happens to a run, it ends as if it had not: to the bit."""

import random

import pytest

from tests.faults.injuries import (
  HALF,
  Victim,
  disk_full,
  go_on,
  kill,
  metrics_cut,
  newest_truncated,
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
# The others are done many times by `python -m tests.faults`, and in process by
# the tests of what is hurt.
QUICK = (
  told_to_stop,
  told_to_stop_early,
  newest_truncated,
  metrics_cut,
  disk_full,
  two_at_once,
  one_of_two_killed,
  one_of_two_has_no_room,
  one_of_two_told_to_stop,
)


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


@pytest.mark.parametrize('injury', QUICK, ids=lambda injury: injury.__name__)
def test_a_run_survives(ward, injury):
  victim = victim_of(ward, injury.__name__, 1)
  assert 0 <= injury(victim) <= HALF
