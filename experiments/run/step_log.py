"""The log of training steps, which stops a run that skips too many."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.prepared.batches import batch_at
from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.run.logs import MetricsLog
from experiments.run.process import print_line

# The number of users of a batch that an error names.
_NAMED = 5


class StepLog(MetricsLog):
  """A `MetricsLog` that also counts the steps that were skipped.

  A step whose loss or gradient is not finite is skipped: it changes nothing.

  Args:
    users: the split that is trained on.
    start: number of steps that are done already.
    num_steps: number of steps of the run.
    saved: results of `since_save` from checkpoints.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    settings: RunSettings,
    users: UserArrays,
    *,
    start: int,
    num_steps: int,
    saved: Sequence[dict[str, Any]],
  ):
    super().__init__(folder, settings, resume_at=start, saved=saved)
    self._settings, self._users = settings, users
    self._last, self._in_a_row = num_steps, 0
    seconds = 0.0
    if saved and saved[-1]['until'] == start:
      self._in_a_row = saved[-1]['skipped_in_a_row']
      seconds = saved[-1].get('seconds', 0.0)
    self._began = time.perf_counter() - seconds

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

  def since_save(self, step: int) -> dict[str, Any]:
    """The state of the log for the checkpoint of a step."""
    since = {'skipped_in_a_row': self._in_a_row} | self._seconds()
    return super().since_save(step) | since

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
