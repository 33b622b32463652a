"""What a run tells while it trains: metrics to files, progress to the eye."""

import json
import pathlib
import sys
import time

import tensorboardX
import tqdm
from jax.typing import ArrayLike

from experiments.workdir import METRICS, write_whole


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

  Args:
    title: what is being done.
    total: steps of the whole run.
    start: steps done already.
    users: users of a step.
    every: seconds between two lines where there is no terminal.
  """

  def __init__(
    self, title: str, *, total: int, start: int, users: int, every: float
  ):
    self._title, self._total, self._users = title, total, users
    self._done, self._every = start, every
    # The first step compiles; a rate that counts it says nothing of the rest.
    self._timed_from: tuple[int, float] | None = None
    self._told = time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(desc=title, total=total, initial=start, unit='step')
      self._every = 0.5

  def update(self, loss: ArrayLike) -> None:
    """Counts one step; its loss is waited for only where it is told."""
    self._done += 1
    now = time.monotonic()
    if self._timed_from is None:
      self._timed_from = (self._done, now)
    elif now - self._told >= self._every or self._done == self._total:
      self._told = now
      steps = self._done - self._timed_from[0]
      # A coarse clock may not have moved.
      seconds = max(now - self._timed_from[1], 1e-9)
      self._tell(steps / seconds, float(loss))

  def _tell(self, rate: float, loss: float) -> None:
    told = f'{rate * self._users:,.0f} users/s, loss {loss:.4f}'
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
      self._bar.close()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
