"""The training loop of all commands: step, log, save, resume."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import jax
import optax

from adaptssr_jax.checkpoint.checkpoints import Checkpoints
from adaptssr_jax.checkpoint.items import Description
from adaptssr_jax.data.prepared.batches import users_per_device
from adaptssr_jax.training.devices import replicate
from adaptssr_jax.training.row_step import apply_pending_updates
from adaptssr_jax.training.step import TrainState, pmap_step
from experiments.flags.binder import SettingsError
from experiments.flags.process import check_table_update
from experiments.flags.shared import RunSettings
from experiments.run.batches import Prefetch
from experiments.run.interruption import (
  Interrupted,
  asked_to_stop,
  defer_signals,
)
from experiments.run.logs import MetricsLog, restore_metrics
from experiments.run.process import print_line
from experiments.run.progress import Progress
from experiments.run.steps import Training
from experiments.run.trackers import find_trackers
from experiments.run.workdir import differing_settings


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that `train` needs to know about a run."""

  settings: RunSettings
  folder: pathlib.Path
  training: Training
  key: jax.Array  # the random key from which those of all steps are derived
  description: Description  # stored in checkpoints
  # State -> (numbers to log, score of the checkpoint or None).
  on_epoch: Callable[[TrainState], tuple[dict[str, float], float | None]]
  score_start: bool = False  # whether to validate before the first step


def check_run(settings: RunSettings) -> None:
  """Raises `SettingsError` for flags with which training would fail."""
  check_devices(settings)
  find_trackers(settings)
  check_table_update(settings)


def check_devices(settings: RunSettings) -> None:
  """Raises `SettingsError` if devices cannot split the batch evenly."""
  if jax.device_count() != jax.process_count() * jax.local_device_count():
    raise SettingsError(
      f'this process has {jax.local_device_count()} of {jax.device_count()} '
      f'devices: give all {jax.process_count()} processes the same number'
    )
  try:
    users_per_device(settings.batch_size, jax.device_count())
  except ValueError as error:
    raise SettingsError(
      f'--batch_size: {error}; or, on a CPU, another --cpu_devices'
    ) from error


def learning_rate(
  settings: RunSettings, num_steps: int, *, rate: float | None = None
) -> float | optax.Schedule:
  """The learning rate of each step: --warmup_steps, then --schedule.

  Args:
    num_steps: number of steps of the run, at the end of which a decay is at 0.
    rate: the peak rate [--learning_rate].
  """
  rate, warmup = rate or settings.learning_rate, settings.warmup_steps
  if settings.schedule == 'constant' and not warmup:
    return rate
  left = num_steps - warmup
  if left < 1:
    raise SettingsError(
      f'--warmup_steps={warmup} must be less than the number of steps, '
      f'{num_steps}'
    )
  schedule = {
    'constant': optax.constant_schedule(rate),
    'linear': optax.linear_schedule(rate, 0.0, left),
    'cosine': optax.cosine_decay_schedule(rate, left),
  }[settings.schedule]
  if not warmup:
    return schedule
  # The first step of the warm-up has a rate above 0.
  rises = optax.linear_schedule(rate / (warmup + 1), rate, warmup)
  return optax.join_schedules([rises, schedule], [warmup])


def make_optimizer(
  settings: RunSettings, rate: float | optax.Schedule
) -> optax.GradientTransformation:
  """Adam, or AdamW if there is weight decay."""
  if settings.weight_decay:
    return optax.adamw(rate, weight_decay=settings.weight_decay)
  return optax.adam(rate)


def train(run: Run, state: TrainState) -> TrainState:
  """Trains from the newest checkpoint of the run, or from this state.

  Returns:
    The state after the last step, or the best one if epochs have scores. Its
    parameters are for use outside training: pending updates of rows are applied
    to them, but not to `opt_state`, so training cannot continue from it.
  """
  settings = run.settings
  with defer_signals():
    # Closed even if interrupted, so that a checkpoint is written to its end.
    with Checkpoints(
      run.folder, keep=settings.keep_checkpoints, on_progress=print_line
    ) as checkpoints:
      state, is_stopped = _train_on(run, replicate(state), checkpoints)
      if not is_stopped:
        state = checkpoints.restore_best(like=state) or state
    if is_stopped:
      raise Interrupted(
        f'{run.folder}: stopped after step {int(state.step):,} of '
        f'{run.training.num_steps:,}, which is saved'
      )
  return state._replace(params=apply_pending_updates(state))


def _train_on(
  run: Run, state: TrainState, checkpoints: Checkpoints
) -> tuple[TrainState, bool]:
  """Trains to the end; the last state, and whether a signal stopped it."""
  state = checkpoints.restore(like=state) or state
  settings, training, saved = run.settings, run.training, checkpoints.logs()
  start, total = int(state.step), training.num_steps
  if start >= total or _out_of_patience(run, start, checkpoints):
    restore_metrics(run.folder, resume_at=start, saved=saved)
    print_line(f'{run.folder}: finished at step {start:,}; nothing to train')
    return state, False
  if start:
    _refuse_other_run(run, start, checkpoints)
    print_line(f'{run.folder}: resumes at step {start:,} of {total:,}')
  batches = training.batches.prefetched(range(start, total))
  # Closed even if interrupted, so that no thread outlives the run.
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.closing(batches))
    log = MetricsLog(
      run.folder,
      settings,
      resume_at=start,
      saved=saved,
      users=training.batches.users,
      num_steps=total,
    )
    stack.enter_context(contextlib.closing(log))
    progress = Progress(
      run.folder.name,
      total=total,
      start=start,
      users=settings.batch_size,
      waited=lambda: batches.waited,
    )
    stack.enter_context(contextlib.closing(progress))
    if run.score_start and not start:
      score = _end_epoch(run, state, log)
      since = log.since_save(start)
      checkpoints.save(state, run.description, score=score, log=since)
    return _take_steps(run, state, checkpoints, batches, log, progress)


def _refuse_other_run(run: Run, step: int, checkpoints: Checkpoints) -> None:
  """Raises `SettingsError` if another run saved the checkpoint of a step."""
  # The folder has been opened for these data, and refuses others.
  differing = differing_settings(
    checkpoints.flags(step), run.settings, same_data=True
  )
  if differing:
    raise SettingsError(
      f'{run.folder}: the checkpoint of step {step:,} is of a run with other '
      f'settings: {differing}. Remove it from the folder, or choose another '
      '--workdir'
    )


def _take_steps(
  run: Run,
  state: TrainState,
  checkpoints: Checkpoints,
  batches: Prefetch,
  log: MetricsLog,
  progress: Progress,
) -> tuple[TrainState, bool]:
  """Takes the steps of a run; returns as `_train_on`."""
  training, key = run.training, replicate(run.key)
  step_fn = pmap_step(training.step, num_replicated_args=1, donate=True)
  metrics, stop = None, False
  for step, batch in enumerate(batches, int(state.step) + 1):
    before = metrics
    state, metrics = step_fn(state, batch, key)
    # The devices compute this step while the one before is logged, so that the
    # loop is at most one step ahead of them.
    if before is not None:
      log.write_step(step - 1, before)
    stop, is_last = asked_to_stop(step), step == training.num_steps
    epoch_ends = step % training.batches.steps_per_epoch == 0 or is_last
    due = step % run.settings.checkpoint_every == 0 or is_last or stop
    loss, score = metrics['loss'], None
    if epoch_ends or due:
      # A checkpoint contains the lines of all steps up to its own.
      log.write_step(step, metrics)
      metrics = None
    if epoch_ends:
      score = _end_epoch(run, state, log)
    if due or score is not None:
      since = log.since_save(step)
      checkpoints.save(state, run.description, score=score, log=since)
    progress.update(loss)
    if epoch_ends and _out_of_patience(run, step, checkpoints):
      print_line(
        f'{run.folder}: stops at step {step:,}; validation was best at step '
        f'{checkpoints.best_step():,}'
      )
      break
    if stop:
      break
  return state, stop


def _end_epoch(run: Run, state: TrainState, log: MetricsLog) -> float | None:
  """Validates and logs; returns the score, if there is one."""
  with log.paused() as seconds:
    evaluated = state._replace(params=apply_pending_updates(state))
    values, score = run.on_epoch(evaluated)
    log.write(int(state.step), values | seconds)
  return score


def _out_of_patience(run: Run, step: int, checkpoints: Checkpoints) -> bool:
  """Whether validation has not improved for `--patience` epochs."""
  patience = run.settings.patience
  best = checkpoints.best_step() if patience else None
  if best is None:
    return False
  return step - best >= patience * run.training.batches.steps_per_epoch
