"""The loop that all training shares: step, log, save, resume."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from adaptssr_jax.checkpoint import Checkpoints, Description
from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.batches import (
  batch_at,
  steps_per_epoch,
  users_per_device,
)
from adaptssr_jax.train import TrainState, init_state, pmap_step, replicate
from experiments.logs import MetricsLog, Progress
from experiments.settings import SettingsError
from experiments.shared_settings import RunSettings


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run trains, and how its end and its epochs are met.

  Args:
    settings: of the run.
    folder: of the run.
    users: the split that is trained on.
    length: behaviours seen of a user.
    step: (state, batch) -> (state, metrics), before `pmap_step`.
    description: what checkpoints say of themselves.
    on_epoch: state -> (numbers to log, score of the checkpoint or None).
  """

  settings: RunSettings
  folder: pathlib.Path
  users: UserArrays
  length: int
  step: Callable[[TrainState, dict], tuple[TrainState, dict]]
  description: Description
  on_epoch: Callable[[TrainState], tuple[dict[str, float], float | None]]

  @property
  def steps_per_epoch(self) -> int:
    """Updates that show every user once."""
    return steps_per_epoch(len(self.users.items), self.settings.batch_size)

  @property
  def num_steps(self) -> int:
    """Updates of the whole run."""
    epochs = self.settings.num_epochs * self.steps_per_epoch
    return self.settings.num_steps or epochs


def check_devices(settings: RunSettings) -> None:
  """Raises `SettingsError` where the batch cannot be split over the devices."""
  try:
    users_per_device(settings.batch_size, jax.local_device_count())
  except ValueError as error:
    raise SettingsError(f'--batch_size: {error}') from error


def make_optimizer(settings: RunSettings) -> optax.GradientTransformation:
  """Adam, with decoupled weight decay if there is any."""
  if settings.weight_decay:
    return optax.adamw(
      settings.learning_rate, weight_decay=settings.weight_decay
    )
  return optax.adam(settings.learning_rate)


def train(
  run: Run, params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """Trains from the newest checkpoint of the run, or from these parameters.

  Args:
    run: what to train.
    params: where a new run starts.
    optimizer: makes the state that belongs to them.

  Returns:
    The state after the last step, or the best one if epochs have scores.
  """
  settings = run.settings
  # Closed even if interrupted, so that the checkpoint being written is whole.
  with contextlib.closing(
    Checkpoints(run.folder, keep=settings.keep_checkpoints)
  ) as checkpoints:
    state = replicate(init_state(params, optimizer))
    state = checkpoints.restore(like=state) or state
    start = int(state.step)
    if start < run.num_steps and not _out_of_patience(run, start, checkpoints):
      state = _train_from(run, state, checkpoints)
    else:
      print(f'{run.folder}: finished at step {start:,}; nothing to train')
    best = checkpoints.best_step()
    if best is not None:
      state = checkpoints.restore(like=state, step=best)
  return state


def _train_from(
  run: Run, state: TrainState, checkpoints: Checkpoints
) -> TrainState:
  settings, total = run.settings, run.num_steps
  start = int(state.step)
  if start:
    print(f'{run.folder}: goes on at step {start:,} of {total:,}', flush=True)
  step_fn = pmap_step(run.step, donate=True)
  log = MetricsLog(run.folder, resume_at=start)
  progress = Progress(
    run.folder.name,
    total=total,
    start=start,
    users=settings.batch_size,
    every=settings.progress_every,
  )
  for step in range(start + 1, total + 1):
    state, metrics = step_fn(state, _batch(run, step - 1))
    if step % settings.log_every == 0 or step == total:
      values = {name: float(value) for name, value in metrics.items()}
      log.write(step, values)
    score, epoch_ends = None, step % run.steps_per_epoch == 0 or step == total
    if epoch_ends:
      values, score = run.on_epoch(state)
      log.write(step, values)
    due = step % settings.checkpoint_every == 0 or step == total
    if due or score is not None:
      checkpoints.save(state, run.description, score=score)
    progress.update(metrics['loss'])
    if epoch_ends and _out_of_patience(run, step, checkpoints):
      print(
        f'{run.folder}: stops at step {step:,}; validation was best at step '
        f'{checkpoints.best_step():,}',
        flush=True,
      )
      break
  progress.close()
  log.close()
  return state


def _out_of_patience(run: Run, step: int, checkpoints: Checkpoints) -> bool:
  """Whether validation has not improved for `--patience` epochs."""
  best = checkpoints.best_step() if run.settings.patience else None
  if best is None:
    return False
  return step - best >= run.settings.patience * run.steps_per_epoch


def _batch(run: Run, step: int) -> dict[str, Any]:
  return batch_at(
    run.users,
    step,
    batch_size=run.settings.batch_size,
    length=run.length,
    num_devices=jax.local_device_count(),
    seed=run.settings.seed,
    window=run.settings.window,
  )


def batches_in_order(
  users: UserArrays, settings: RunSettings, length: int
) -> Iterator[dict[str, Any]]:
  """The batches of one pass over a split, in the stored order."""
  for step in range(steps_per_epoch(len(users.items), settings.batch_size)):
    yield batch_at(
      users,
      step,
      batch_size=settings.batch_size,
      length=length,
      num_devices=jax.local_device_count(),
      seed=None,
    )
