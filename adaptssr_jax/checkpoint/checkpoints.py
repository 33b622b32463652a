"""Checkpoints of a run, kept by Orbax.

A checkpoint has everything that is needed to resume a run or to use its model
elsewhere: the training state, the fields of the encoder, the raw ids of the
items in its table, and the flags of the run. No key is saved, since every key
is derived from the seed and the step.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from adaptssr_jax.checkpoint import files
from adaptssr_jax.checkpoint.files import DamagedError
from adaptssr_jax.checkpoint.items import (
  Description,
  check_shapes,
  read_items,
)
from adaptssr_jax.errors import CheckpointError
from adaptssr_jax.training.devices import global_shapes, to_global, to_local
from adaptssr_jax.training.step import TrainState


class Checkpoints:
  """The checkpoints of one run, in the folder `checkpoints` of its workdir.

  Args:
    workdir: the folder of the run.
    keep: how many of the latest checkpoints to keep, in addition to the best.
    on_progress: called with each line of progress.

  Raises:
    CheckpointError: the scores or logs of all checkpoints are damaged.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep: int,
    on_progress: Callable[[str], None] = print,
  ):
    self._folder = pathlib.Path(workdir).absolute() / files.FOLDER
    self._on_progress = on_progress
    self._in_first_process(
      lambda: self._quarantine(files.unreadable(self._folder))
    )
    policy = ocp.checkpoint_managers
    best = policy.BestN(
      n=1, get_metric_fn=files.score_key, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy.AnyPreservationPolicy(
        [policy.LatestN(keep), best]
      ),
      # Without it, Orbax would not write the scores.
      best_fn=files.score_key,
      # Left by a process that was killed while it saved.
      cleanup_tmp_directories=True,
      async_options=ocp.options.AsyncOptions(
        barrier_sync_fn=_barrier if jax.process_count() > 1 else None
      ),
    )
    with files.reading(self._folder):
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def best_step(self) -> int | None:
    """The step with the best score, the first of equals; None without one."""
    # A score is on disk only after its checkpoint is.
    with files.writing(self._folder):
      self._manager.wait_until_finished()
    # Processes may see different files of a shared disk.
    return self._in_first_process(files.best_of, self._folder)

  def logs(self) -> list[dict[str, Any]]:
    """The log entries that were saved with checkpoints, the oldest first."""
    steps = sorted(self._manager.all_steps())
    found = [files.log_of(self._folder / str(step)) for step in steps]
    return [log for log in found if log]

  def flags(self, step: int) -> dict[str, str]:
    """The flags of the run that saved the checkpoint of a step."""
    items = {'flags': ocp.args.JsonRestore()}
    return read_items(self._folder / str(step), items)['flags']

  def save(
    self,
    state: TrainState,
    description: Description,
    *,
    score: float | None = None,
    log: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves a state in the background; its buffers may be donated immediately.

    Args:
      state: the state. Nothing is written if its step is saved already.
      description: description of the model and its run.
      score: validation score, larger is better; None or a value that is not
        finite makes a checkpoint without a score.
      log: entry that `logs` returns later; None for none.

    Raises:
      CheckpointError: this checkpoint cannot be written, or the previous one
        could not be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    # Comparisons with nan are False, so nan could be taken for the best score.
    if score is not None and not math.isfinite(score):
      score = None
    params, opt_state = to_global((state.params, state.opt_state))
    items = description._asdict() | (
      {} if log is None else {files.LOG: dict(log)}
    )
    with files.writing(self._folder):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          opt_state=ocp.args.StandardSave(opt_state),
          **{name: ocp.args.JsonSave(value) for name, value in items.items()},
        ),
        metrics=None if score is None else {'score': score, 'step': step},
        force=True,
      )

  def restore(self, like: TrainState) -> TrainState | None:
    """Restores the newest intact state onto the devices of `like`.

    Newer, damaged checkpoints are reported, and moved to the folder
    `damaged_checkpoints`. With several processes, all must call this.

    Args:
      like: a state with the shapes and shardings of the result.

    Returns:
      The state, or None if nothing was saved yet.

    Raises:
      CheckpointError: the checkpoint is of another model, or all checkpoints
        are damaged.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      found = self._intact(like, step)
      if isinstance(found, TrainState):
        if damaged:
          self._in_first_process(self._quarantine, damaged)
          self._manager.reload()
        return found
      damaged.append(found)
    if damaged:
      raise files.all_damaged(damaged[0])
    return None

  def restore_best(self, like: TrainState) -> TrainState | None:
    """As `restore`, but the state with the best score; None without scores."""
    while (step := self.best_step()) is not None:
      found = self._intact(like, step)
      if isinstance(found, TrainState):
        return found
      self._in_first_process(self._quarantine, [found])
      self._manager.reload()
    return None

  def _intact(self, like: TrainState, step: int) -> TrainState | DamagedError:
    """Restores a step, or returns the damage if any process finds some.

    Any other error in one process is raised in all of them.
    """
    try:
      found, own = self._restored(like, step), 0
    except DamagedError as error:
      found, own = error, 1
    except Exception as error:
      found, own = error, 2
    worst = own
    if jax.process_count() > 1:
      worst = int(multihost_utils.process_allgather(own).max())
    if own == 2:
      raise found
    path, reason = self._folder / str(step), 'another process cannot read it'
    if worst == 2:
      raise CheckpointError(f'{path}: {reason}; see its error')
    return found if own == worst else DamagedError(path, reason)

  def _restored(self, like: TrainState, step: int) -> TrainState:
    like = like._asdict()
    at_step = jax.device_put(
      jax.numpy.asarray(step, like['step'].dtype), like.pop('step').sharding
    )
    wanted = global_shapes(like)
    items = {
      # A sharded table may have another number of rows of padding.
      name: ocp.args.StandardRestore(tree, strict=False)
      for name, tree in wanted.items()
    }
    path = self._folder / str(step)
    check_shapes(path, wanted)
    restored = read_items(path, items)
    files.log_of(path)
    return TrainState(at_step, **to_local(dict(restored.items()), like))

  def _quarantine(self, damaged: Sequence[DamagedError]) -> None:
    for error in damaged:
      self._on_progress(files.quarantine(error))

  def _in_first_process(
    self, function: Callable[..., int | None], *args: Any
  ) -> int | None:
    """Calls a function in the first process and shares its result or error."""
    if jax.process_count() == 1:
      return function(*args)
    found = error = None
    if jax.process_index() == 0:
      try:
        found = function(*args)
      except Exception as caught:
        error = caught
    step, is_wrong = multihost_utils.broadcast_one_to_all(
      np.array([-1 if found is None else found, error is not None])
    )
    if is_wrong:
      raise error or CheckpointError(
        f'{self._folder}: the first process failed; see its error'
      )
    return None if step < 0 else int(step)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # With several processes, the others may never finish a save.
    if kind is None or jax.process_count() == 1:
      self.close()

  def close(self) -> None:
    """Waits until everything is written."""
    with files.writing(self._folder):
      self._manager.wait_until_finished()
      self._manager.close()


def _barrier(*, key: str, timeout_ms: int) -> None:
  """A barrier for Orbax at which a process with an error does not wait.

  Orbax also calls the barrier while an exception propagates. The process would
  then wait for processes that wait for it elsewhere, until Orbax times out.
  """
  error = sys.exception()
  if error is not None:
    raise error
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
