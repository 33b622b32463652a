"""The numbers of the steps of a run, as its loop writes them."""

import contextlib
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from adaptssr_jax.data import UserArrays
from experiments.flags.shared import RunSettings
from experiments.run.logs import open_log, read_metrics
from experiments.run.skipped import SkippedSteps


class StepLog:
  """Writes the numbers of the steps, and counts those that were skipped.

  Args:
    folder: of the run.
    settings: of the run.
    users: the split that is trained on.
    start: steps done already.
    last: steps of the whole run.
    saved: what checkpoints say of the log.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    settings: RunSettings,
    users: UserArrays,
    *,
    start: int,
    last: int,
    saved: Sequence[dict[str, Any]],
  ):
    self._settings, self._last = settings, last
    in_a_row = 0
    if saved and saved[-1]['until'] == start:
      in_a_row = saved[-1]['skipped_in_a_row']
    self._skipped = SkippedSteps(folder, settings, users, in_a_row=in_a_row)
    self._log = open_log(folder, settings, resume_at=start, saved=saved)
    self.write, self.close = self._log.write, self._log.close
    # A run that goes on counts from the end of its last epoch.
    before = read_metrics(folder) if settings.log_seconds else []
    seconds = max((line.get('seconds', 0) for line in before), default=0)
    self._began = time.perf_counter() - seconds

  @contextlib.contextmanager
  def paused(self) -> Iterator[dict[str, float]]:
    """The seconds of training until now, to be logged; what follows is none."""
    at = time.perf_counter()
    yield {'seconds': at - self._began} if self._settings.log_seconds else {}
    self._began += time.perf_counter() - at

  def write_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Waits for a step, and writes its numbers if it is one to be logged."""
    jax.block_until_ready(metrics)
    metrics = dict(metrics)
    is_skipped = float(metrics.pop('skipped')) > 0
    if is_skipped:
      self.write(step, {'skipped': 1})
    elif step % self._settings.log_every == 0 or step == self._last:
      values = jax.device_get(metrics)
      self.write(step, {name: float(value) for name, value in values.items()})
    self._skipped.count(step, is_skipped)

  def since_save(self, step: int) -> dict[str, Any]:
    """What a checkpoint of this step says of the log."""
    in_a_row = self._skipped.in_a_row
    return self._log.since_save(step) | {'skipped_in_a_row': in_a_row}
