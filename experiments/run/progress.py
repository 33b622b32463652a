"""The progress of a run on the screen."""

import collections
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import tqdm
from jax.typing import ArrayLike

from experiments.run.process import is_main_process, is_quiet

# The number of last steps from which the rate is computed.
_WINDOW = 100
# Seconds between two updates of the bar of a terminal.
_REDRAWN = 0.5
_LINE = '{desc}: step {n:,}/{total:,}{postfix}, {remaining} left'


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
