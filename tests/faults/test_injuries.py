"""Whatever happens to a run, it ends as if it had not: to the bit."""

import random
import signal

import pytest

from tests.faults.injuries import (
  HALF,
  MOMENTS,
  Victim,
  disk_full,
  end,
  go_on,
  metrics_cut,
  newest_truncated,
  open_ward,
  settings_of,
  some_data,
  start,
  told_to_stop,
  told_to_stop_early,
  two_at_once,
  victim_of,
  wait_until,
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
)


@pytest.fixture(scope='module')
def ward(tmp_path_factory, data_dir):
  return open_ward(tmp_path_factory.mktemp('ward'), data_dir)


def test_a_run_killed_at_twenty_moments(ward):
  rng, kills, runs = random.Random(0), 0, 0
  data_dir = str(ward.folder / 'killed_data')
  while kills < 20:
    settings = settings_of(ward.folder / f'killed{runs}', data_dir)
    victim, runs = Victim(settings, ward.whole, rng), runs + 1
    while kills < 20:
      moment = some_data if kills < 3 else rng.choice(MOMENTS)
      process = start(settings)
      if not wait_until(process, moment(victim)):
        end(process)
        break
      process.kill()
      end(process, -signal.SIGKILL)
      kills += 1
    redone, _ = go_on(victim)
    # The steps since the last save, while which one more may be done.
    assert 0 <= redone <= 2 * settings.checkpoint_every


@pytest.mark.parametrize('injury', QUICK, ids=lambda injury: injury.__name__)
def test_a_run_survives(ward, injury):
  victim = victim_of(ward, injury.__name__, 1)
  assert 0 <= injury(victim) <= HALF
