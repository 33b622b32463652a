"""The logs of a run: metrics in files, and progress on the screen."""

import collections
import itertools
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm
from jax.typing import ArrayLike

from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.run.process import is_main_process, is_quiet, print_line
from experiments.run.trackers import find_trackers
from experiments.run.workdir import METRICS, atomic_write, writing

# The number of last steps from which the rate is computed.
_WINDOW = 100
# Seconds between two updates of the bar of a terminal.
_REDRAWN = 0.5
_LINE = '{desc}: step {n:,}/{total:,}{postfix}, {remaining} left'


class MetricsLog:
  """Writes the same numbers to `metrics.jsonl` and to the trackers of a run.

  Unless --log_seconds is set, the file does not depend on the clock, so that
  two equal runs write equal files. A number that is not finite is left out. A
  tracker that fails is not used again, and the run continues. With several
  processes, only the main process writes.

  Args:
    resume_at: the last step whose lines are kept; later ones are written again.
    saved: results of `since_save` from checkpoints, which replace lines that
      the file has lost.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    settings: RunSettings,
    *,
    resume_at: int,
    saved: Sequence[Mapping[str, Any]] = (),
  ):
    self._folder, path = folder, folder / METRICS
    self._is_muted = not is_main_process()
    if self._is_muted:
      return
    mend_metrics(folder, resume_at=resume_at, saved=saved)
    self._after, self._recent = resume_at, []
    with writing(folder):
      self._file = path.open('a')
    self._trackers: dict[str, Any] = {}
    for name, tracker in find_trackers(settings).items():
      try:
        log = tracker(folder, settings.flag_values(), resume_at)
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
    """The lines up to a step that are not in a checkpoint yet."""
    if self._is_muted:
      return {}
    lines = {'after': self._after, 'until': step, 'lines': self._recent}
    self._after, self._recent = step, []
    return lines

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


def mend_metrics(
  folder: pathlib.Path,
  *,
  resume_at: int,
  saved: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Cuts `metrics.jsonl` after a step; restores lines, see `MetricsLog`."""
  path = folder / METRICS
  lines = _mended(_lines_of(path), [*saved, {'after': resume_at}])
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


def _mended(
  lines: list[tuple[int, str]], saved: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Replaces the lines of some steps by those saved in checkpoints.

  Example:
    >>> lines = [(1, 'a'), (2, 'broken'), (9, 'z')]
    >>> _mended(lines, [{'after': 1, 'until': 3, 'lines': ['b', 'c']}])
    ['a', 'b', 'c', 'z']
    >>> _mended(lines, [{'after': 2}])
    ['a', 'broken']
  """
  for part in saved:
    until = part.get('until', math.inf)
    before = [line for line in lines if line[0] <= part['after']]
    behind = [line for line in lines if line[0] > until]
    own = [(until, line) for line in part.get('lines', ())]
    lines = before + own + behind
  return [line for _, line in lines]


class Progress(tqdm.tqdm):
  """Users per second, loss and time left: a bar, or lines without a terminal.

  The rate and the time left are computed from the median time of the last
  steps, which excludes the time between steps, such as validation.

  Args:
    title: text in front of the bar or line.
    total: number of steps of the run.
    start: number of steps that are done already.
    users: users per step.
    every: seconds between two lines if there is no terminal.
    waited: returns the seconds that steps have waited for input so far.
  """

  # `update` refreshes the bar, so that no thread is needed.
  monitor_interval = 0

  def __init__(
    self,
    title: str,
    *,
    total: int,
    start: int,
    users: int,
    every: float = 10.0,
    waited: Callable[[], float] | None = None,
  ):
    self._users, self._waited, self._loss = users, waited, None
    # The times at which steps were counted, and the waiting time until then, in
    # seconds.
    self._times: collections.deque[tuple] = collections.deque(maxlen=_WINDOW)
    self._is_bar = sys.stderr.isatty()
    super().__init__(
      desc=title,
      total=total,
      disable=is_quiet() or not is_main_process(),
      initial=start,
      unit='step',
      miniters=1,
      mininterval=_REDRAWN if self._is_bar else every,
      leave=self._is_bar,
      bar_format=None if self._is_bar else _LINE,
    )

  def update(self, loss: ArrayLike) -> None:
    """Counts one step; waits for its loss only if the loss is displayed."""
    if self.disable:  # By --quiet, or by TQDM_DISABLE.
      return
    # The first step has only been dispatched, and may run for a long time yet.
    if self.n > self.initial:
      waited = self._waited() if self._waited else 0.0
      self._times.append((time.monotonic(), waited))
    self._loss = loss
    if not super().update() and self.n == self.total:
      self.refresh()

  @property
  def format_dict(self) -> dict[str, Any]:
    """The values for tqdm, with the rate and the loss of the last steps."""
    if len(self._times) < 2:
      return super().format_dict
    now, waited = zip(*self._times, strict=True)
    # The median excludes validation and compilation, which come between steps.
    seconds = statistics.median(
      after - before for before, after in itertools.pairwise(now)
    )
    rate = 1 / max(seconds, 1e-9)  # A coarse clock may show no difference.
    postfix = f'{rate * self._users:,.0f} users/s, loss {float(self._loss):.4f}'
    if self._waited:
      share = (waited[-1] - waited[0]) / max(now[-1] - now[0], 1e-9)
      postfix += f', input wait {share:.1%}'
    return super().format_dict | {'rate': rate, 'postfix': postfix}

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Draws the bar, or prints a line as soon as there is a rate."""
    if self._is_bar:
      super().display(msg, pos)
    elif msg is None and len(self._times) > 1:
      print(self, file=sys.stderr, flush=True)
