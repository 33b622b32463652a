"""Checkpoints: every call to Orbax.

A checkpoint is all that is needed to go on, and to use what was learned
elsewhere: the state of training, the fields of the encoder, the raw item ids
behind its table, and the flags of the run. No key is saved, since every key
follows from the seed and the step.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from adaptssr_jax.description import Description
from adaptssr_jax.models import UserEncoder
from adaptssr_jax.optimizers import (
  AdamSettings,
  RowAdamState,
  caught_up_table,
)
from adaptssr_jax.train import RowOptState, TrainState

_FOLDER = 'checkpoints'
_ROW_OPT_STATE = set(RowOptState._fields)


class CheckpointError(ValueError):
  """A checkpoint cannot be read; the message says which and what to do."""


class Checkpoints:
  """The checkpoints of one run, in the folder `checkpoints` of its workdir.

  Args:
    workdir: the folder of the run.
    keep: how many of the latest to keep; the best one is kept besides.
  """

  def __init__(self, workdir: str | pathlib.Path, *, keep: int):
    self._manager = _open(
      pathlib.Path(workdir).absolute() / _FOLDER,
      preservation_policy=_latest_and_best(keep),
      # Without it Orbax would not write the scores.
      best_fn=_score,
    )

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint; None if there is none."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best score, the first of equals; None without one."""
    # A score is not on disk before its checkpoint is.
    self._manager.wait_until_finished()
    return _best_step(self._manager)

  def save(
    self,
    state: TrainState,
    description: Description,
    *,
    score: float | None = None,
  ) -> None:
    """Saves the state, in the background; it may be donated at once.

    Args:
      state: what to save, named by its step.
      description: what to say of it.
      score: of the model on validation data, larger is better; one that is
        not finite is none.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    # Nothing compares with nan, which could pass for the best.
    if score is not None and not math.isfinite(score):
      score = None
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        opt_state=ocp.args.StandardSave(state.opt_state),
        **{
          name: ocp.args.JsonSave(value)
          for name, value in description._asdict().items()
        },
      ),
      metrics=None if score is None else {'score': score, 'step': step},
      force=True,
    )

  def restore(
    self, like: TrainState, step: int | None = None
  ) -> TrainState | None:
    """Restores a state onto the devices of `like`.

    Args:
      like: a state of the same shapes, where the arrays are to go.
      step: which one; the latest by default.

    Returns:
      The state, or None if nothing was saved yet.

    Raises:
      CheckpointError: the checkpoint is damaged or of another model.
    """
    step = self.latest_step() if step is None else step
    if step is None:
      return None
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = {
      'params': ocp.args.StandardRestore(wanted.params),
      'opt_state': ocp.args.StandardRestore(wanted.opt_state),
    }
    restored = _restore(self._manager, step, items)
    at_step = jax.device_put(
      jax.numpy.asarray(step, like.step.dtype), like.step.sharding
    )
    return TrainState(at_step, restored['params'], restored['opt_state'])

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()


def restore_description(path: str | pathlib.Path) -> Description:
  """What a checkpoint says of itself; `path` as for `restore_encoder`."""
  with _reader(path) as (manager, step):
    return _description(manager, step)


def restore_encoder(
  path: str | pathlib.Path,
) -> tuple[UserEncoder, dict[str, Any], list[str]]:
  """Rebuilds a pre-trained or fine-tuned encoder from its checkpoint alone.

  Args:
    path: the workdir of a run, or its folder of checkpoints: the best one is
      taken where the run scored them, else the latest. Or the folder of one
      checkpoint.

  Returns:
    The encoder, its parameters on the first device, and the vocabulary: the
    raw item ids, that of item i at i - 1.

  Raises:
    CheckpointError: there is no checkpoint, or it is damaged.

  Example:
    >>> import tempfile, optax
    >>> from adaptssr_jax.description import describe
    >>> from adaptssr_jax.train import init_state
    >>> encoder = UserEncoder(num_items=2, max_length=4, embed_dim=4)
    >>> items = jax.numpy.array([[1, 2, 0]])
    >>> params = {'encoder': encoder.init(jax.random.key(0), items)['params']}
    >>> folder = tempfile.mkdtemp()
    >>> run = Checkpoints(folder, keep=1)
    >>> state = init_state(params, optax.sgd(1.0))
    >>> run.save(state, describe(encoder, ['a', 'b'], flags={}))
    >>> run.close()
    >>> encoder, params, vocabulary = restore_encoder(folder)
    >>> encoder.apply({'params': params}, items).shape, vocabulary
    ((1, 4), ['a', 'b'])
  """
  device = SingleDeviceSharding(jax.local_devices()[0])
  with _reader(path) as (manager, step):
    description = _description(manager, step)
    wanted = {
      'params': _saved_shapes(manager, step, 'params', device),
      'opt_state': _saved_shapes(manager, step, 'opt_state', device),
    }
    # Of the optimizer, what rows of the table that are behind are caught up by.
    saved = wanted['opt_state']
    if not (isinstance(saved, dict) and saved.keys() == _ROW_OPT_STATE):
      del wanted['opt_state']
    restored = _restore(
      manager,
      step,
      {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()},
    )
    params = restored['params']['encoder']
    if 'opt_state' in restored:
      params['item_embedding'] = _caught_up(
        params['item_embedding'], restored['opt_state']['table']
      )
    with _explained(pathlib.Path(manager.directory) / str(step)):
      encoder = UserEncoder(**description.encoder)
      return encoder, params, description.vocabulary


def _caught_up(table: jax.Array, saved: dict[str, Any]) -> jax.Array:
  settings = AdamSettings(**saved['settings'])
  state = RowAdamState(**saved | {'settings': settings})
  return caught_up_table(table, state)


def _description(manager: ocp.CheckpointManager, step: int) -> Description:
  items = {name: ocp.args.JsonRestore() for name in Description._fields}
  return Description(**_restore(manager, step, items))


def _saved_shapes(
  manager: ocp.CheckpointManager, step: int, item: str, device: Any
) -> Any:
  """What was saved of an item, as it is to be restored onto a device."""
  folder = pathlib.Path(manager.directory) / str(step) / item
  with ocp.StandardCheckpointer() as reader, _explained(folder.parent):
    saved = reader.metadata(folder).item_metadata.tree
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    saved,
  )


def _score(metrics: Mapping[str, Any]) -> tuple[float, int]:
  # Among equals the first: more training must show to be preferred.
  return metrics['score'], -metrics['step']


def _best_step(manager: ocp.CheckpointManager) -> int | None:
  metrics = {}
  for step in manager.all_steps():
    with _explained(pathlib.Path(manager.directory) / str(step)):
      metrics[step] = manager.metrics(step)
  scored = [step for step, metric in metrics.items() if metric]
  return max(scored, key=lambda step: _score(metrics[step]), default=None)


def _latest_and_best(keep: int) -> Any:
  policy = ocp.checkpoint_managers
  return policy.AnyPreservationPolicy(
    [
      policy.LatestN(keep),
      policy.BestN(
        n=1, get_metric_fn=_score, keep_checkpoints_without_metrics=False
      ),
    ]
  )


def _open(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
  with _explained(_unreadable_score(folder) or folder):
    return ocp.CheckpointManager(
      folder, options=ocp.CheckpointManagerOptions(**options)
    )


def _unreadable_score(folder: pathlib.Path) -> pathlib.Path | None:
  """The checkpoint whose score Orbax will fail to read, not naming it."""
  for path in sorted(folder.glob('*/metrics/metrics')):
    try:
      json.loads(path.read_text())
    except ValueError:
      return path.parent.parent
  return None


@contextlib.contextmanager
def _reader(
  path: str | pathlib.Path,
) -> Iterator[tuple[ocp.CheckpointManager, int]]:
  """Opens the checkpoints at a path, and says which one is meant."""
  folder = pathlib.Path(path).absolute()
  if (folder / _FOLDER).is_dir():
    folder = folder / _FOLDER
  if not folder.is_dir():
    raise CheckpointError(f'{path}: no such folder; give the workdir of a run')
  step = None
  if folder.name.isdigit() and folder.parent.name == _FOLDER:
    folder, step = folder.parent, int(folder.name)
  with _open(folder, read_only=True) as manager:
    if manager.latest_step() is None:
      raise CheckpointError(
        f'{path}: holds no checkpoint; give the workdir of a run that has '
        'saved one'
      )
    if step is None:
      with _explained(folder):
        step = _best_step(manager) or manager.latest_step()
    yield manager, step


def _restore(
  manager: ocp.CheckpointManager, step: int, items: dict[str, Any]
) -> Any:
  with _explained(pathlib.Path(manager.directory) / str(step)):
    return manager.restore(step, args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  # Nothing is wrong with the checkpoint there.
  except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
    raise
  # Orbax and TensorStore raise many types for a damaged or missing file.
  except Exception as error:
    reason, *_ = str(error).split('\n')
    raise CheckpointError(
      f'{folder}: damaged, or of another model ({type(error).__name__}: '
      f'{reason}). Remove the damaged checkpoint to go on from the one before'
    ) from error
