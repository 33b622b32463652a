"""The loop that all training shares: step, log, save, resume."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from adaptssr_jax.checkpoint import Checkpoints
from adaptssr_jax.data import UserArrays
from adaptssr_jax.data.batches import (
  batch_at,
  steps_per_epoch,
  users_per_device,
)
from adaptssr_jax.description import Description
from adaptssr_jax.train import (
  TrainState,
  caught_up_params,
  caught_up_state,
  pmap_step,
  replicate,
  split,
)
from experiments.logs import MetricsLog, Progress
from experiments.prefetch import Prefetch
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
    step: (state, batch, key) -> (state, metrics), before `pmap_step`.
    key: of the run, from which all draws of its steps follow.
    description: what checkpoints say of themselves.
    on_epoch: state -> (numbers to log, score of the checkpoint or None).
  """

  settings: RunSettings
  folder: pathlib.Path
  users: UserArrays
  length: int
  step: Callable[[TrainState, dict, jax.Array], tuple[TrainState, dict]]
  key: jax.Array
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
    raise SettingsError(
      f'--batch_size: {error}; or, on a CPU, another --cpu_devices'
    ) from error


def make_optimizer(settings: RunSettings) -> optax.GradientTransformation:
  """Adam, with decoupled weight decay if there is any."""
  if settings.weight_decay:
    return optax.adamw(
      settings.learning_rate, weight_decay=settings.weight_decay
    )
  return optax.adam(settings.learning_rate)


def train(run: Run, state: TrainState) -> TrainState:
  """Trains from the newest checkpoint of the run, or from this state.

  Args:
    run: what to train.
    state: where a new run starts.

  Returns:
    The state after the last step, or the best one if epochs have scores.
  """
  settings = run.settings
  # Closed even if interrupted, so that the checkpoint being written is whole.
  with contextlib.closing(
    Checkpoints(run.folder, keep=settings.keep_checkpoints)
  ) as checkpoints:
    state = replicate(state)
    state = checkpoints.restore(like=state) or state
    start = int(state.step)
    if start < run.num_steps and not _out_of_patience(run, start, checkpoints):
      state = _train_from(run, state, checkpoints)
    else:
      print(f'{run.folder}: finished at step {start:,}; nothing to train')
    best = checkpoints.best_step()
    if best is not None:
      state = checkpoints.restore(like=state, step=best)
  return caught_up_state(state)


def _train_from(
  run: Run, state: TrainState, checkpoints: Checkpoints
) -> TrainState:
  settings, total = run.settings, run.num_steps
  start = int(state.step)
  if start:
    print(f'{run.folder}: goes on at step {start:,} of {total:,}', flush=True)
  step_fn, key = pmap_step(run.step, whole=1, donate=True), replicate(run.key)
  batches = training_batches(
    run.users, settings, run.length, range(start, total)
  )
  # Closed even if interrupted, so that no thread outlives the run.
  with (
    contextlib.closing(batches),
    contextlib.closing(MetricsLog(run.folder, resume_at=start)) as log,
    contextlib.closing(_progress(run, start, batches)) as progress,
  ):
    metrics = None
    for step, batch in enumerate(batches, start + 1):
      before = metrics
      state, metrics = step_fn(state, batch, key)
      # The devices have this step to do while the one before is told of, and
      # the loop is never further ahead of them.
      if before is not None:
        _write_step(run, log, step - 1, before)
      epoch_ends = step % run.steps_per_epoch == 0 or step == total
      due = step % settings.checkpoint_every == 0 or step == total
      loss, score = metrics['loss'], None
      if epoch_ends or due:
        # A checkpoint promises the lines of all its steps.
        _write_step(run, log, step, metrics)
        metrics = None
      if epoch_ends:
        whole = state._replace(params=caught_up_params(state))
        values, score = run.on_epoch(whole)
        log.write(step, values)
      if due or score is not None:
        checkpoints.save(state, run.description, score=score)
      progress.update(loss)
      if epoch_ends and _out_of_patience(run, step, checkpoints):
        print(
          f'{run.folder}: stops at step {step:,}; validation was best at step '
          f'{checkpoints.best_step():,}',
          flush=True,
        )
        break
  return state


def _write_step(
  run: Run, log: MetricsLog, step: int, metrics: dict[str, jax.Array]
) -> None:
  """Waits for a step, and writes its numbers if it is one to be logged."""
  jax.block_until_ready(metrics)
  if step % run.settings.log_every == 0 or step == run.num_steps:
    values = jax.device_get(metrics)
    log.write(step, {name: float(value) for name, value in values.items()})


def _progress(run: Run, start: int, batches: Prefetch) -> Progress:
  return Progress(
    run.folder.name,
    total=run.num_steps,
    start=start,
    users=run.settings.batch_size,
    every=run.settings.progress_every,
    waited=lambda: batches.waited,
  )


def _out_of_patience(run: Run, step: int, checkpoints: Checkpoints) -> bool:
  """Whether validation has not improved for `--patience` epochs."""
  best = checkpoints.best_step() if run.settings.patience else None
  if best is None:
    return False
  return step - best >= run.settings.patience * run.steps_per_epoch


def training_batches(
  users: UserArrays, settings: RunSettings, length: int, steps: range
) -> Prefetch:
  """The batches of these steps, made ahead and put on the devices."""
  make = functools.partial(
    training_batch, users, settings=settings, length=length
  )
  return Prefetch(make, steps)


def training_batch(
  users: UserArrays, step: int, *, settings: RunSettings, length: int
) -> dict[str, jax.Array]:
  """The batch of a step, on the devices."""
  batch = batch_at(
    users,
    step,
    batch_size=settings.batch_size,
    length=length,
    num_devices=jax.local_device_count(),
    seed=settings.seed,
    window=settings.window,
  )
  # Moved before the step is dispatched, which would wait for it.
  return jax.block_until_ready(split(batch))


def batches_in_order(
  users: UserArrays, settings: RunSettings, length: int
) -> Iterator[dict[str, Any]]:
  """The batches of one pass over a split, in the stored order.

  They are of NumPy, since who evaluates also reads them.
  """
  make = functools.partial(
    batch_at,
    users,
    batch_size=settings.batch_size,
    length=length,
    num_devices=jax.local_device_count(),
    seed=None,
  )
  steps = range(steps_per_epoch(len(users.items), settings.batch_size))
  with contextlib.closing(Prefetch(make, steps)) as batches:
    yield from batches
