"""Faults that are injected into real training processes.

Each function takes a run that is halfway done, injects a fault, resumes the run
by the same command, and returns the number of repeated steps. `assert_same_run`
checks that the run ends as an undisturbed one.
"""

import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from tests import processes
from tests.processes import end
from tests.tiny_runs import (
  assert_same_run,
  lines,
  pretrain_settings,
  saved_steps,
)

# Of a process that lives 5 seconds on a machine that has nothing else to do.
SECONDS = 120
# So small that what a process does is mostly to begin and to save.
TINY = {
  # Of one program that is soon compiled.
  'objective': ('pooled_items',),
  'num_steps': 24,
  # As often as an epoch ends, which is saved anyway.
  'checkpoint_every': 3,
  'log_every': 1,
  'buckets': 1,
  'microbatch': 0,
}


class Victim(NamedTuple):
  """A run to be hurt.

  Args:
    settings: of the run, which may have begun.
    whole: the folder of an equal run that nothing happened to.
    seconds: that such a process lives.
    rng: of the moments and the wounds.
  """

  settings: object
  whole: pathlib.Path
  seconds: float
  rng: random.Random

  @property
  def folder(self):
    return pathlib.Path(self.settings.workdir)

  @property
  def checkpoints(self):
    return self.folder / 'checkpoints'


def settings_of(folder, data_dir, **changes):
  return pretrain_settings(folder, data_dir, **TINY | changes)


def start(settings, *, file_size=None):
  """Starts a run in a process of its own, on two simulated devices."""
  flags = settings.to_flagfile().splitlines()
  return processes.start('pretrain', flags, devices=2, file_size=file_size)


def start_pair(settings, *, file_size=None):
  """Starts a run in two processes of a device each."""
  flags = settings.to_flagfile().splitlines()
  return processes.start_all(
    'pretrain', flags, processes=2, devices=1, file_size=file_size
  )


def finish(settings):
  return end(start(settings))


def finish_pair(settings):
  """What the first of two processes printed, which alone prints."""
  first, second = map(end, start_pair(settings))
  assert second == ''
  return first


def last_step(settings):
  """The last step whose numbers were written."""
  try:
    return max((line['step'] for line in lines(settings.workdir)), default=0)
  except (FileNotFoundError, ValueError):
    return 0  # Not there yet, or half a line.


def steps_redone(before, output):
  """How many steps a run does twice that had come so far and now goes on."""
  found = re.search(r'(?:resumes|finished) at step ([\d,]+)', output)
  return before - (int(found[1].replace(',', '')) if found else 0)


def go_on(victim, before=None, *, finish=finish):
  """Lets the run finish, which must end like the whole one; steps redone."""
  before = last_step(victim.settings) if before is None else before
  output = finish(victim.settings)
  assert_healed(victim)
  return steps_redone(before, output), output


def go_on_alone(victim):
  """Lets the run finish in one process; steps redone."""
  return go_on(victim)[0]


def go_on_as_two(victim):
  """The same in two processes; steps redone."""
  return go_on(victim, finish=finish_pair)[0]


def is_hurt_again(victim):
  """In place of `go_on`, where the next injury follows."""
  return 0


def assert_healed(victim):
  """The run ended like the whole one, and left nothing else."""
  assert_same_run(victim.folder, victim.whole)
  left = {path.name for path in victim.folder.iterdir()}
  assert not {name for name in left if 'lock' in name or 'part' in name}
  assert not list(victim.folder.rglob('*tmp*'))


# When a process is hurt.


def wait_until(process, is_time: Callable[[], bool]):
  """Waits for a moment in the life of a process; False if it ended before."""
  deadline = time.monotonic() + SECONDS
  while process.poll() is None:
    if is_time():
      return True
    assert time.monotonic() < deadline, 'the moment never came'
    time.sleep(0.001)
  return False


def some_time(victim):
  """A moment of its whole life."""
  moment = time.monotonic() + victim.rng.uniform(0.1, 0.9) * victim.seconds
  return lambda: time.monotonic() > moment


def some_step(victim):
  """When some more steps have been done."""
  step = last_step(victim.settings) + victim.rng.randrange(1, 6)
  return lambda: last_step(victim.settings) >= step


def some_save(victim):
  """In the middle of a save, this or that part of it."""
  count = victim.rng.randrange(1, 9)
  pattern = '*.orbax-checkpoint-tmp/*'

  def is_time():
    return len(list(victim.checkpoints.glob(pattern))) >= count

  return is_time


def some_data(victim):
  """In the middle of the preparation of the data."""

  def written():
    # What disappears meanwhile is no error of a walk.
    walked = os.walk(victim.settings.data_dir)
    return sum(len(folders) + len(files) for _, folders, files in walked)

  count = written() + victim.rng.randrange(1, 9)
  return lambda: written() >= count


# The injuries.


def kill(victim, moment):
  """Starts a run and kills it, unless it ends before the moment comes."""
  is_time = moment(victim)
  # Else it would be killed at once.
  assert not is_time()
  process = start(victim.settings)
  if wait_until(process, is_time):
    process.kill()
    end(process, -signal.SIGKILL)
  else:
    end(process)


def killed(victim, moment=some_step):
  """SIGKILL, once."""
  kill(victim, moment)
  return go_on(victim)[0]


def killed_while_it_saves(victim):
  return killed(victim, some_save)


def killed_at_any_time(victim):
  return killed(victim, some_time)


def killed_while_it_prepares_data(victim):
  """SIGKILL while the data set is written."""
  data = str(victim.folder.with_name(f'{victim.folder.name}_data'))
  settings = dataclasses.replace(victim.settings, data_dir=data)
  return killed(victim._replace(settings=settings), some_data)


def told_to_stop(victim, *, then=go_on_alone):
  """SIGTERM: it saves, and ends by itself."""
  process = start(victim.settings)
  assert wait_until(process, some_step(victim))
  told = time.monotonic()
  process.terminate()
  output = end(process)
  assert time.monotonic() - told < 30
  assert 'stopped after step' in output, output
  assert saved_steps(victim.folder)[-1] == last_step(victim.settings)
  redone = then(victim)
  assert redone == 0
  return redone


def told_to_stop_early(victim, *, then=go_on_alone):
  """SIGTERM before there is anything to save."""
  shutil.rmtree(victim.folder, ignore_errors=True)
  process = start(victim.settings)
  moment = victim.rng.choice(['flags.txt', 'dataset.txt'])
  assert wait_until(process, (victim.folder / moment).exists)
  process.terminate()
  output = end(process)
  assert 'give the same command to resume' in output, output
  return then(victim)


def _newest_is_hurt(victim, wound):
  """Hurts files of the newest checkpoint: the one before is taken.

  Unless nobody needs what is lost, since Orbax writes some things twice.
  """
  before = last_step(victim.settings)
  newest = victim.checkpoints / str(saved_steps(victim.folder)[-1])
  wound([path for path in newest.rglob('*') if path.is_file()])
  redone, output = go_on(victim, before)
  told = [line for line in output.splitlines() if str(newest) in line]
  if redone:
    assert redone == victim.settings.checkpoint_every, output
    assert len(told) == 1, output
    assert f'{newest}: damaged' in told[0]
  aside = victim.folder / 'damaged_checkpoints' / newest.name
  assert aside.is_dir() == bool(redone)
  return redone


def newest_truncated(victim):
  """All files of the newest checkpoint are cut somewhere."""

  def cut(paths):
    for path in paths:
      os.truncate(path, victim.rng.randrange(path.stat().st_size))

  assert _newest_is_hurt(victim, cut)
  return victim.settings.checkpoint_every


def newest_emptied(victim):
  """No file of the newest checkpoint has any bytes."""

  def empty(paths):
    for path in paths:
      os.truncate(path, 0)

  assert _newest_is_hurt(victim, empty)
  return victim.settings.checkpoint_every


def newest_misses_a_file(victim):
  """The newest checkpoint has lost a file."""
  return _newest_is_hurt(
    victim, lambda paths: victim.rng.choice(sorted(paths)).unlink()
  )


def metrics_cut(victim):
  """`metrics.jsonl` ends in the middle of a line, below the checkpoint too."""
  before = last_step(victim.settings)
  path = victim.folder / 'metrics.jsonl'
  os.truncate(path, path.stat().st_size - victim.rng.randrange(1, 300))
  return go_on(victim, before)[0]


def metrics_spoilt(victim):
  """`metrics.jsonl` ends in what a broken disk leaves."""
  before = last_step(victim.settings)
  with (victim.folder / 'metrics.jsonl').open('ab') as file:
    file.write(bytes(victim.rng.randrange(256) for _ in range(99)) + b'\0\n\0')
  return go_on(victim, before)[0]


def disk_full(victim, *, then=go_on_alone):
  """No file can grow: the next save fails."""
  kept = saved_steps(victim.folder)
  output = end(start(victim.settings, file_size=12), code=1)
  told = output.splitlines()[-1]
  assert told.startswith('error: '), output
  assert 'make room, and give the same command' in told, output
  assert saved_steps(victim.folder) == kept
  return then(victim)


def two_at_once(victim):
  """The same command is given while the run still goes."""
  process = start(victim.settings)
  assert wait_until(process, (victim.folder / '.lock').exists)
  refused = end(start(victim.settings), code=1)
  assert f'is in use by process {process.pid}' in refused
  end(process)
  assert_healed(victim)
  return 0


def one_of_two_killed(victim, *, then=go_on_as_two):
  """SIGKILL of one of two processes: the other says so, and ends."""
  pair = start_pair(victim.settings)
  assert wait_until(pair[0], some_step(victim))
  killed = victim.rng.randrange(2)
  pair[killed].kill()
  pair[killed].communicate(timeout=SECONDS)
  is_left_by(pair[1 - killed])
  return then(victim)


def one_of_two_has_no_room(victim, *, then=go_on_as_two):
  """The disk of the first of two processes is full: both end, and say why."""
  kept = saved_steps(victim.folder)
  pair = start_pair(victim.settings, file_size=12)
  output = end(pair[0], code=1)
  assert 'make room, and give the same command' in output, output
  is_left_by(pair[1])
  assert saved_steps(victim.folder) == kept
  return then(victim)


def is_left_by(process):
  """A process that another one left ends soon, and says so."""
  left = time.monotonic()
  output, _ = process.communicate(timeout=SECONDS)
  assert time.monotonic() - left < 60
  assert process.returncode not in (0, None), output
  # The first of these lines is JAX's, where the first process has gone.
  told = 'another task died' in output or 'error: another process' in output
  assert told, output
  assert 'Traceback' not in output, output


def one_of_two_told_to_stop(victim, *, then=go_on_as_two):
  """SIGTERM to one of two processes: both save the same step, and end."""
  pair = start_pair(victim.settings)
  assert wait_until(pair[0], some_step(victim))
  victim.rng.choice(pair).terminate()
  output, _ = map(end, pair)
  assert 'stopped after step' in output, output
  assert saved_steps(victim.folder)[-1] == last_step(victim.settings)
  redone = then(victim)
  assert redone == 0
  return redone


INJURIES = (
  killed_at_any_time,
  killed,
  killed_while_it_saves,
  killed_while_it_prepares_data,
  told_to_stop,
  told_to_stop_early,
  newest_truncated,
  newest_emptied,
  newest_misses_a_file,
  metrics_cut,
  metrics_spoilt,
  disk_full,
  two_at_once,
  one_of_two_killed,
  one_of_two_has_no_room,
  one_of_two_told_to_stop,
)


class Ward(NamedTuple):
  """Where runs are hurt.

  Args:
    folder: of all runs, of which nothing happens to `whole`.
    data_dir: of what they read.
    seconds: that a process lives that does half of one.
  """

  folder: pathlib.Path
  data_dir: str
  seconds: float = 0.0

  @property
  def whole(self):
    return self.folder / 'whole'


def open_ward(folder, data_dir):
  """Makes the whole run."""
  ward = Ward(pathlib.Path(folder), data_dir)
  finish(settings_of(ward.whole, data_dir))
  return ward


def newborn_of(ward, name, seed):
  """A run that has not begun, to be hurt."""
  settings = settings_of(ward.folder / name, ward.data_dir)
  return Victim(settings, ward.whole, ward.seconds, random.Random(seed))
