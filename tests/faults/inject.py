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

# A limit for processes that take 5 seconds on an idle machine.
SECONDS = 120
# So small that a process mostly starts and saves.
TINY = {
  # One program that compiles fast.
  'objective': ('pooled_items',),
  'num_steps': 24,
  # An epoch, after which a run saves in any case.
  'checkpoint_every': 3,
  'log_every': 1,
  'buckets': 1,
  'microbatch': 0,
}


class Run(NamedTuple):
  """A run into which faults are injected.

  Args:
    settings: its settings. The run may be half done.
    undisturbed: the folder of the same run without any fault.
    seconds: how long a process of the run takes.
    rng: draws when a fault happens, and what it damages.
  """

  settings: object
  undisturbed: pathlib.Path
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
  """Finishes a run in two processes; returns what the first one printed."""
  first, second = map(end, start_pair(settings))
  assert second == ''
  return first


def last_step(settings):
  """The last step in the metrics of a run."""
  try:
    return max((line['step'] for line in lines(settings.workdir)), default=0)
  except (FileNotFoundError, ValueError):
    return 0  # Not there yet, or half a line.


def steps_redone(before, output):
  """The number of steps that a resumed run repeats."""
  found = re.search(r'(?:resumes|finished) at step ([\d,]+)', output)
  return before - (int(found[1].replace(',', '')) if found else 0)


def resume(run, before=None, *, finish=finish):
  """Finishes a run like the undisturbed one; returns the repeated steps."""
  before = last_step(run.settings) if before is None else before
  output = finish(run.settings)
  assert_undisturbed(run)
  return steps_redone(before, output), output


def resume_alone(run):
  """Finishes a run in one process; returns the repeated steps."""
  return resume(run)[0]


def resume_as_two(run):
  """Finishes a run in two processes; returns the repeated steps."""
  return resume(run, finish=finish_pair)[0]


def next_fault_follows(run):
  """Does not resume, because the next fault follows."""
  return 0


def assert_undisturbed(run):
  """The run ended like the undisturbed one, and left no other files."""
  assert_same_run(run.folder, run.undisturbed)
  left = {path.name for path in run.folder.iterdir()}
  assert not {name for name in left if 'lock' in name or 'part' in name}
  assert not list(run.folder.rglob('*tmp*'))


# The moments at which a fault is injected.


def wait_until(process, is_time: Callable[[], bool]):
  """Waits for a moment; False if the process ends before it."""
  deadline = time.monotonic() + SECONDS
  while process.poll() is None:
    if is_time():
      return True
    assert time.monotonic() < deadline, 'the moment never came'
    time.sleep(0.001)
  return False


def some_time(run):
  """Any moment of the process."""
  moment = time.monotonic() + run.rng.uniform(0.1, 0.9) * run.seconds
  return lambda: time.monotonic() > moment


def some_step(run):
  """The moment after some more steps."""
  step = last_step(run.settings) + run.rng.randrange(1, 6)
  return lambda: last_step(run.settings) >= step


def some_save(run):
  """A moment within a save."""
  count = run.rng.randrange(1, 9)
  pattern = '*.orbax-checkpoint-tmp/*'

  def is_time():
    return len(list(run.checkpoints.glob(pattern))) >= count

  return is_time


def some_data(run):
  """A moment within the preparation of the data."""

  def written():
    # os.walk ignores files that disappear meanwhile.
    walked = os.walk(run.settings.data_dir)
    return sum(len(folders) + len(files) for _, folders, files in walked)

  count = written() + run.rng.randrange(1, 9)
  return lambda: written() >= count


# The faults.


def kill(run, moment):
  """Starts a run and kills it, unless it ends before the moment comes."""
  is_time = moment(run)
  # Otherwise it would be killed at once.
  assert not is_time()
  process = start(run.settings)
  if wait_until(process, is_time):
    process.kill()
    end(process, -signal.SIGKILL)
  else:
    end(process)


def killed(run, moment=some_step):
  """SIGKILL, once."""
  kill(run, moment)
  return resume(run)[0]


def killed_while_it_saves(run):
  return killed(run, some_save)


def killed_at_any_time(run):
  return killed(run, some_time)


def killed_while_it_prepares_data(run):
  """SIGKILL while the data set is written."""
  data = str(run.folder.with_name(f'{run.folder.name}_data'))
  settings = dataclasses.replace(run.settings, data_dir=data)
  return killed(run._replace(settings=settings), some_data)


def told_to_stop(run, *, then=resume_alone):
  """SIGTERM: the run saves and ends."""
  process = start(run.settings)
  assert wait_until(process, some_step(run))
  told = time.monotonic()
  process.terminate()
  output = end(process)
  assert time.monotonic() - told < 30
  assert 'stopped after step' in output, output
  assert saved_steps(run.folder)[-1] == last_step(run.settings)
  redone = then(run)
  assert redone == 0
  return redone


def told_to_stop_early(run, *, then=resume_alone):
  """SIGTERM before there is anything to save."""
  shutil.rmtree(run.folder, ignore_errors=True)
  process = start(run.settings)
  moment = run.rng.choice(['flags.txt', 'dataset.txt'])
  assert wait_until(process, (run.folder / moment).exists)
  process.terminate()
  output = end(process)
  assert 'give the same command to resume' in output, output
  return then(run)


def _newest_is_damaged(run, damage):
  """Damages files of the newest checkpoint; the one before it must be used.

  The newest is still used if the damaged files are not needed, since Orbax
  writes some data twice.
  """
  before = last_step(run.settings)
  newest = run.checkpoints / str(saved_steps(run.folder)[-1])
  damage([path for path in newest.rglob('*') if path.is_file()])
  redone, output = resume(run, before)
  told = [line for line in output.splitlines() if str(newest) in line]
  if redone:
    assert redone == run.settings.checkpoint_every, output
    assert len(told) == 1, output
    assert f'{newest}: damaged' in told[0]
  aside = run.folder / 'damaged_checkpoints' / newest.name
  assert aside.is_dir() == bool(redone)
  return redone


def newest_truncated(run):
  """All files of the newest checkpoint are truncated."""

  def cut(paths):
    for path in paths:
      os.truncate(path, run.rng.randrange(path.stat().st_size))

  assert _newest_is_damaged(run, cut)
  return run.settings.checkpoint_every


def newest_emptied(run):
  """All files of the newest checkpoint are empty."""

  def empty(paths):
    for path in paths:
      os.truncate(path, 0)

  assert _newest_is_damaged(run, empty)
  return run.settings.checkpoint_every


def newest_misses_a_file(run):
  """A file of the newest checkpoint is missing."""
  return _newest_is_damaged(
    run, lambda paths: run.rng.choice(sorted(paths)).unlink()
  )


def metrics_cut(run):
  """`metrics.jsonl` ends within a line, maybe of a step that was saved."""
  before = last_step(run.settings)
  path = run.folder / 'metrics.jsonl'
  os.truncate(path, path.stat().st_size - run.rng.randrange(1, 300))
  return resume(run, before)[0]


def metrics_spoilt(run):
  """`metrics.jsonl` ends with random bytes."""
  before = last_step(run.settings)
  with (run.folder / 'metrics.jsonl').open('ab') as file:
    file.write(bytes(run.rng.randrange(256) for _ in range(99)) + b'\0\n\0')
  return resume(run, before)[0]


def disk_full(run, *, then=resume_alone):
  """Files cannot grow, so the next save fails."""
  kept = saved_steps(run.folder)
  output = end(start(run.settings, file_size=12), code=1)
  told = output.splitlines()[-1]
  assert told.startswith('error: '), output
  assert 'make room, and give the same command' in told, output
  assert saved_steps(run.folder) == kept
  return then(run)


def two_at_once(run):
  """The same command is given while the run is running."""
  process = start(run.settings)
  assert wait_until(process, (run.folder / '.lock').exists)
  refused = end(start(run.settings), code=1)
  assert f'is in use by process {process.pid}' in refused
  end(process)
  assert_undisturbed(run)
  return 0


def one_of_two_killed(run, *, then=resume_as_two):
  """SIGKILL of one of two processes: the other ends with an error."""
  pair = start_pair(run.settings)
  assert wait_until(pair[0], some_step(run))
  killed = run.rng.randrange(2)
  pair[killed].kill()
  pair[killed].communicate(timeout=SECONDS)
  ends_alone(pair[1 - killed])
  return then(run)


def one_of_two_has_no_room(run, *, then=resume_as_two):
  """The disk of the first of two processes is full: both end with errors."""
  kept = saved_steps(run.folder)
  pair = start_pair(run.settings, file_size=12)
  output = end(pair[0], code=1)
  assert 'make room, and give the same command' in output, output
  ends_alone(pair[1])
  assert saved_steps(run.folder) == kept
  return then(run)


def ends_alone(process):
  """A process ends soon, with an error, when another one has ended."""
  left = time.monotonic()
  output, _ = process.communicate(timeout=SECONDS)
  assert time.monotonic() - left < 60
  assert process.returncode not in (0, None), output
  # JAX prints the first message if the first process is gone.
  told = 'another task died' in output or 'error: another process' in output
  assert told, output
  assert 'Traceback' not in output, output


def one_of_two_told_to_stop(run, *, then=resume_as_two):
  """SIGTERM to one of two processes: both save the same step and end."""
  pair = start_pair(run.settings)
  assert wait_until(pair[0], some_step(run))
  run.rng.choice(pair).terminate()
  output, _ = map(end, pair)
  assert 'stopped after step' in output, output
  assert saved_steps(run.folder)[-1] == last_step(run.settings)
  redone = then(run)
  assert redone == 0
  return redone


FAULTS = (
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


class Environment(NamedTuple):
  """The folders of all runs.

  Args:
    folder: the folder of all runs, `undisturbed` among them.
    data_dir: the folder of their data.
    seconds: how long a process takes for half of a run.
  """

  folder: pathlib.Path
  data_dir: str
  seconds: float = 0.0

  @property
  def undisturbed(self):
    return self.folder / 'undisturbed'


def make_environment(folder, data_dir):
  """Makes the undisturbed run."""
  env = Environment(pathlib.Path(folder), data_dir)
  finish(settings_of(env.undisturbed, data_dir))
  return env


def new_run(env, name, seed):
  """A run that has not begun."""
  settings = settings_of(env.folder / name, env.data_dir)
  return Run(settings, env.undisturbed, env.seconds, random.Random(seed))
