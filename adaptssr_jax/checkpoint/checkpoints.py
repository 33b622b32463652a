"""Checkpoints of a run, kept by Orbax.

A checkpoint is all that is needed to go on, and to use what was learned
elsewhere: the state of training, the fields of the encoder, the raw item ids
behind its table, and the flags of the run. No key is saved, since every key
follows from the seed and the step.
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
    keep: how many of the latest to keep; the best one is kept besides.
    tell: is called with each line of progress.

  Raises:
    CheckpointError: there are checkpoints, but none with a score that can be
      read.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep: int,
    tell: Callable[[str], None] = print,
  ):
    self._folder = pathlib.Path(workdir).absolute() / files.FOLDER
    self._tell = tell
    self._in_first_process(
      lambda: self._quarantine(files.unreadable_scores(self._folder))
    )
    policy = ocp.checkpoint_managers
    best = policy.BestN(
      n=1, get_metric_fn=files.rank, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy.AnyPreservationPolicy(
        [policy.LatestN(keep), best]
      ),
      # Without it Orbax would not write the scores.
      best_fn=files.rank,
      # What a process left that was killed while it saved.
      cleanup_tmp_directories=True,
      async_options=ocp.options.AsyncOptions(
        barrier_sync_fn=_barrier if jax.process_count() > 1 else None
      ),
    )
    with files.reading(self._folder):
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def best_step(self) -> int | None:
    """The step with the best score, the first of equals; None without one."""
    # A score is not on disk before its checkpoint is.
    with files.writing(self._folder):
      self._manager.wait_until_finished()
    # A disk may show each process something else.
    return self._in_first_process(files.best_of, self._folder)

  def logs(self) -> list[dict[str, Any]]:
    """What was saved as the log with the checkpoints, the oldest first."""
    steps = sorted(self._manager.all_steps())
    found = [files.log_of(self._folder / str(step)) for step in steps]
    return [log for log in found if log]

  def save(
    self,
    state: TrainState,
    description: Description,
    *,
    score: float | None = None,
    log: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves a state in the background; its buffers may be donated at once.

    Args:
      state: the state. Nothing is written if its step is saved already.
      description: what the checkpoint says of the model and its run.
      score: validation score, larger is better; None or a value that is not
        finite makes a checkpoint without a score.
      log: entry that `logs` returns later; None for none.

    Raises:
      CheckpointError: this checkpoint cannot be written, or the one before it
        could not.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    # Nothing compares with nan, which could pass for the best.
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
    """Restores the newest state that is whole, onto the devices of `like`.

    Damaged ones after it are reported, and moved to the folder
    `damaged_checkpoints`. With several processes all have to call this.

    Args:
      like: a state of the same shapes, where the arrays are to go.

    Returns:
      The state, or None if nothing was saved yet.

    Raises:
      CheckpointError: the checkpoint is of another model, or damaged, and so
        are all before it.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      found = self._whole(like, step)
      if isinstance(found, TrainState):
        if damaged:
          self._in_first_process(self._quarantine, damaged)
          self._manager.reload()
        return found
      damaged.append(found)
    if damaged:
      raise files.none_is_whole(damaged[0])
    return None

  def restore_best(self, like: TrainState) -> TrainState | None:
    """As `restore`, of those with a score the best; None if there is none."""
    while (step := self.best_step()) is not None:
      found = self._whole(like, step)
      if isinstance(found, TrainState):
        return found
      self._in_first_process(self._quarantine, [found])
      self._manager.reload()
    return None

  def _whole(self, like: TrainState, step: int) -> TrainState | DamagedError:
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
      raise CheckpointError(f'{path}: {reason}, and says why')
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
      self._tell(files.quarantine(error))

  def _in_first_process(
    self, function: Callable[..., int | None], *args: Any
  ) -> int | None:
    """Calls a function in the first process; all return its result or raise."""
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
        f'{self._folder}: the first process could not go on, and says why'
      )
    return None if step < 0 else int(step)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # With several processes, the others may never come to the end of a save.
    if kind is None or jax.process_count() == 1:
      self.close()

  def close(self) -> None:
    """Waits until everything is written."""
    with files.writing(self._folder):
      self._manager.wait_until_finished()
      self._manager.close()


def _barrier(*, key: str, timeout_ms: int) -> None:
  """A barrier for Orbax that a process with an error does not wait at.

  It would wait for processes that wait for it, until Orbax times out.
  """
  # Orbax also calls the barrier while an exception propagates.
  error = sys.exception()
  if error is not None:
    raise error
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
