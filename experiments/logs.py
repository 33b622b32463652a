"""What a run tells while it trains: metrics to files, progress to the eye."""

import collections
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorboardX
import tqdm
from jax.typing import ArrayLike

from experiments.workdir import METRICS, write_whole

# The last steps, of which the rate is taken.
_WINDOW = 100


class _Time(NamedTuple):
  """When a step was counted, and what had been waited by then, in seconds."""

  done: int
  now: float
  waited: float


class MetricsLog:
  """Writes the same numbers to `metrics.jsonl` and to TensorBoard events.

  The file holds nothing that depends on the clock, so that two equal runs
  write equal files.

  Args:
    folder: of the run.
    resume_at: the last step whose lines are kept; later ones are the traces of
      work that an interruption lost, and are written again.
  """

  def __init__(self, folder: pathlib.Path, *, resume_at: int):
    path = folder / METRICS
    write_whole(path, ''.join(_lines_until(path, resume_at)))
    self._file = path.open('a')
    self._events = tensorboardX.SummaryWriter(
      str(folder), purge_step=resume_at + 1
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one line of numbers at a step."""
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    """Writes all that is left."""
    self._file.close()
    self._events.close()


def _lines_until(path: pathlib.Path, step: int) -> list[str]:
  if not path.exists():
    return []
  whole = [
    line
    for line in path.read_text().splitlines(keepends=True)
    if line.endswith('\n')
  ]
  return [line for line in whole if json.loads(line)['step'] <= step]


class Progress:
  """Users per second, loss and time left: a bar, or lines without a terminal.

  The rate is that of the median of the last steps, without what comes between
  them; the time left is that of such steps alone.

  Args:
    title: what is being done.
    total: steps of the whole run.
    start: steps done already.
    users: users of a step.
    every: seconds between two lines where there is no terminal.
    waited: tells for how many seconds the steps have waited for their input so
      far; None if that is not known.
  """

  def __init__(
    self,
    title: str,
    *,
    total: int,
    start: int,
    users: int,
    every: float,
    waited: Callable[[], float] | None = None,
  ):
    self._title, self._total, self._users = title, total, users
    self._done, self._every, self._waited = start, every, waited
    self._times: collections.deque[_Time] = collections.deque(maxlen=_WINDOW)
    self._is_first = True
    self._told = time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(desc=title, total=total, initial=start, unit='step')
      self._every = 0.5

  def update(self, loss: ArrayLike) -> None:
    """Counts one step; its loss is waited for only where it is told."""
    self._done += 1
    now = time.monotonic()
    if self._is_first:
      # Given to the devices, which may be far from through with it.
      self._is_first = False
      return
    waited = self._waited() if self._waited else 0.0
    self._times.append(_Time(self._done, now, waited))
    due = now - self._told >= self._every or self._done == self._total
    if due and len(self._times) > 1:
      self._told = now
      self._tell(float(loss))

  def _tell(self, loss: float) -> None:
    # The median leaves out what comes between steps, as validation does, and
    # what it compiles.
    seconds = statistics.median(
      after.now - before.now
      for before, after in itertools.pairwise(self._times)
    )
    # A coarse clock may not have moved.
    rate = 1 / max(seconds, 1e-9)
    told = f'{rate * self._users:,.0f} users/s, loss {loss:.4f}'
    if self._waited:
      first, last = self._times[0], self._times[-1]
      share = (last.waited - first.waited) / max(last.now - first.now, 1e-9)
      told += f', input wait {share:.1%}'
    if self._bar is not None:
      self._bar.set_postfix_str(told, refresh=False)
      self._bar.update(self._done - self._bar.n)
      return
    print(
      f'{self._title}: step {self._done:,}/{self._total:,}, {told}, '
      f'{_clock((self._total - self._done) / rate)} left',
      file=sys.stderr,
      flush=True,
    )

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.update(self._done - self._bar.n)
      self._bar.close()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
