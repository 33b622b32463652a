"""Steps that changed nothing, since their loss or gradient was not finite."""

import pathlib

from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.prepared.batches import batch_at
from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.run.process import tell

# How many users of a batch are named.
_NAMED = 5


class SkippedSteps:
  """Counts them, and stops the run at too many in a row.

  Args:
    folder: of the run.
    settings: of the run.
    users: the split that is trained on.
    in_a_row: the steps skipped right before the first that is counted.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    settings: RunSettings,
    users: UserArrays,
    *,
    in_a_row: int,
  ):
    self.in_a_row = in_a_row
    self._folder, self._settings, self._users = folder, settings, users

  def count(self, step: int, is_skipped: bool) -> None:
    """Counts a step.

    Raises:
      SettingsError: it is the last of `--max_skipped`; names its users.
    """
    self.in_a_row = self.in_a_row + 1 if is_skipped else 0
    if self.in_a_row == 1:
      tell(
        f'WARNING: step {step:,} is skipped: its loss or gradient is not finite'
      )
    if is_skipped and 0 < self._settings.max_skipped <= self.in_a_row:
      raise SettingsError(
        f'{self._folder}: stops at step {step:,}, the last of '
        f'{self.in_a_row} in a row whose loss or gradient is not finite '
        f'(--max_skipped={self._settings.max_skipped}). Users of its batch: '
        f'{self._users_of(step)}. The newest '
        'checkpoint is good: look at these users, or take a smaller '
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
