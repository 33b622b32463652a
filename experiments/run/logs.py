"""The logs of a run: metrics in files, and steps that were skipped."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.prepared.batches import batch_at
from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.run.process import is_main_process, print_line
from experiments.run.trackers import find_trackers
from experiments.run.workdir import METRICS, atomic_write, writing

# The number of users of a batch that an error names.
_NAMED = 5


class MetricsLog:
  """Writes the same numbers to `metrics.jsonl` and to the trackers of a run.

  Unless --log_seconds is set, the file does not depend on the clock, so that
  two equal runs write equal files. A number that is not finite is left out. A
  tracker that fails is not used again, and the run continues. With several
  processes, only the main process writes.

  It also counts the steps that were skipped: a step whose loss or gradient is
  not finite changes nothing.

  Args:
    resume_at: the last step whose lines are kept; later ones are written again.
    saved: results of `since_save` from checkpoints, which replace lines that
      the file has lost.
    users: the split that is trained on; None if nothing is.
    num_steps: number of steps of the run.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    settings: RunSettings,
    *,
    resume_at: int,
    saved: Sequence[Mapping[str, Any]] = (),
    users: UserArrays | None = None,
    num_steps: int = 0,
  ):
    self._folder, self._settings, self._users = folder, settings, users
    self._last, self._in_a_row, seconds = num_steps, 0, 0.0
    if saved and saved[-1]['until'] == resume_at:
      self._in_a_row = saved[-1]['skipped_in_a_row']
      seconds = saved[-1].get('seconds', 0.0)
    self._is_muted = not is_main_process()
    if not self._is_muted:
      restore_metrics(folder, resume_at=resume_at, saved=saved)
      self._open(resume_at)
    self._began = time.perf_counter() - seconds

  def _open(self, resume_at: int) -> None:
    self._after, self._recent = resume_at, []
    with writing(self._folder):
      self._file = (self._folder / METRICS).open('a')
    self._trackers: dict[str, Any] = {}
    for name, tracker in find_trackers(self._settings).items():
      try:
        flags = self._settings.flag_values()
        log = tracker(self._folder, flags, resume_at)
      except Exception as error:  # Each library raises errors of its own.
        self.close()
        if isinstance(error, SettingsError):
          raise
        raise SettingsError(
          f'--log_to={name} cannot be started: {error}'
        ) from error
      self._trackers[name] = log

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one line, the numbers of a step."""
    if self._is_muted:
      return
    values = {n: value for n, value in values.items() if math.isfinite(value)}
    line = json.dumps({'step': step, **values}) + '\n'
    with writing(self._folder):
      self._file.write(line)
      self._file.flush()
    self._in_trackers(lambda log: log.write(step, values))
    self._recent.append(line)

  def since_save(self, step: int) -> dict[str, Any]:
    """The state for the checkpoint of a step, with the lines since the last."""
    lines = {}
    if not self._is_muted:
      lines = {'after': self._after, 'until': step, 'lines': self._recent}
      self._after, self._recent = step, []
    return lines | {'skipped_in_a_row': self._in_a_row} | self._seconds()

  def close(self) -> None:
    """Closes the file and all trackers."""
    if self._is_muted:
      return
    with writing(self._folder):
      self._file.close()
    self._in_trackers(lambda log: log.close())

  def _in_trackers(self, call: Callable[[Any], None]) -> None:
    for name, log in list(self._trackers.items()):
      try:
        call(log)
      except SettingsError:
        raise
      except Exception as error:
        del self._trackers[name]
        print_line(f'--log_to={name} fails and is not used any more: {error}')

  @contextlib.contextmanager
  def paused(self) -> Iterator[dict[str, float]]:
    """Stops the clock until exit; yields the seconds so far, if logged."""
    at = time.perf_counter()
    yield self._seconds()
    self._began += time.perf_counter() - at

  def _seconds(self) -> dict[str, float]:
    if not self._settings.log_seconds:
      return {}
    return {'seconds': time.perf_counter() - self._began}

  def write_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Waits for a step, and writes its numbers at every --log_every steps."""
    jax.block_until_ready(metrics)
    metrics = dict(metrics)
    if not float(metrics.pop('skipped')):
      self._in_a_row = 0
      if step % self._settings.log_every == 0 or step == self._last:
        values = jax.device_get(metrics)
        self.write(step, {name: float(value) for name, value in values.items()})
      return
    self.write(step, {'skipped': 1})
    self._in_a_row += 1
    if self._in_a_row == 1:
      print_line(
        f'WARNING: step {step:,} is skipped: its loss or gradient is not finite'
      )
    if 0 < self._settings.max_skipped <= self._in_a_row:
      raise SettingsError(
        f'{self._folder}: stops at step {step:,}, the last of '
        f'{self._in_a_row} in a row whose loss or gradient is not finite '
        f'(--max_skipped={self._settings.max_skipped}). Users of its batch: '
        f'{self._users_of(step)}. The newest '
        'checkpoint is good: look at these users, or use a smaller '
        '--learning_rate in another --workdir'
      )

  def _users_of(self, step: int) -> str:
    batch = batch_at(
      self._users,
      step - 1,
      batch_size=self._settings.batch_size,
      length=1,
      num_devices=1,
      seed=self._settings.seed,
    )
    rows = batch['example_id'][batch['where']]
    named = ', '.join(self._users.user_ids(rows[:_NAMED]))
    more = len(rows) - _NAMED
    return named + (f' and {more:,} more' if more > 0 else '')


def restore_metrics(
  folder: pathlib.Path,
  *,
  resume_at: int,
  saved: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Cuts `metrics.jsonl` after a step; restores lines, see `MetricsLog`."""
  path = folder / METRICS
  with writing(folder):
    lines = _restored(_lines_of(path), [*saved, {'after': resume_at}])
  atomic_write(path, ''.join(lines))


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The numbers that a run has logged so far, one dictionary per line."""
  return [json.loads(line) for _, line in _lines_of(folder / METRICS)]


def _lines_of(path: pathlib.Path) -> list[tuple[int, str]]:
  """The step and text of each complete line, up to the first broken one."""
  if not path.exists():
    return []
  *whole, _ = path.read_bytes().split(b'\n')
  found = [_step_of(line) for line in whole]
  end = found.index(None) if None in found else len(found)
  if any(step is not None for step in found[end:]):
    raise SettingsError(
      f'{path}, line {end + 1}: not the JSON of a step, but later lines are. '
      'Correct the line, or remove it'
    )
  return [
    (step, line.decode() + '\n')
    for step, line in zip(found[:end], whole, strict=False)
  ]


def _step_of(line: bytes) -> int | None:
  try:
    step = json.loads(line)['step']
  # Invalid UTF-8 is a ValueError, and JSON other than an object a TypeError.
  except (ValueError, TypeError, KeyError):
    return None
  return step if isinstance(step, int) else None


def _restored(
  lines: list[tuple[int, str]], saved: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Replaces the lines of some steps by those saved in checkpoints.

  Example:
    >>> lines = [(1, 'a'), (2, 'broken'), (9, 'z')]
    >>> _restored(lines, [{'after': 1, 'until': 3, 'lines': ['b', 'c']}])
    ['a', 'b', 'c', 'z']
    >>> _restored(lines, [{'after': 2}])
    ['a', 'broken']
  """
  for part in saved:
    until = part.get('until', math.inf)
    before = [line for line in lines if line[0] <= part['after']]
    behind = [line for line in lines if line[0] > until]
    own = [(until, line) for line in part.get('lines', ())]
    lines = before + own + behind
  return [line for _, line in lines]
