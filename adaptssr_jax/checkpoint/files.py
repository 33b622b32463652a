"""Finds checkpoints, their scores and their damage from their files.

Orbax is not used here, since it stops at the first file that it cannot read.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from adaptssr_jax.errors import CheckpointError
from adaptssr_jax.training.devices import is_of_lost_process

# Name of the folder of checkpoints in the workdir of a run.
FOLDER = 'checkpoints'
# Name of the log in a checkpoint.
LOG = 'log'
# Largest number of characters that a message quotes from an error of Orbax.
_LONGEST = 300
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Errors of a disk that is full, a quota or a limit of the file size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: Exception) -> bool:
  """Whether an error of any library says that a disk or a quota is full.

  Example:
    >>> is_full_disk(RuntimeError('write() failed: No space left on device'))
    True
  """
  return any(os.strerror(number) in str(error) for number in NO_ROOM)


class DamagedError(CheckpointError):
  """Files of a checkpoint are missing or unreadable.

  Args:
    path: the folder of the checkpoint.
    reason: what is wrong with it.
  """

  def __init__(self, path: pathlib.Path, reason: str):
    self.path, self.reason = path, reason
    super().__init__(f'{path}: damaged ({reason}).{_advice(path)}')


def _advice(path: pathlib.Path) -> str:
  if not path.name.isdigit():
    return ''
  before = [step for step in saved_steps(path.parent) if step < int(path.name)]
  if not before:
    return ' There is no checkpoint before it'
  return f' The checkpoint before it is {path.with_name(str(max(before)))}'


def checkpoint_at(path: str | pathlib.Path) -> pathlib.Path:
  """The folder of one checkpoint for a path, see `restore_encoder`."""
  folder = pathlib.Path(path).absolute()
  if (folder / FOLDER).is_dir():
    folder = folder / FOLDER
  if not folder.is_dir():
    raise CheckpointError(f'{path}: no such folder; give the workdir of a run')
  # The path of one checkpoint needs no score.
  if folder.name.isdigit() and folder.parent.name == FOLDER:
    return folder
  steps = saved_steps(folder)
  if not steps:
    raise CheckpointError(
      f'{path}: holds no checkpoint; give the workdir of a run that has saved '
      'one'
    )
  best = best_of(folder)
  return folder / str(steps[-1] if best is None else best)


def saved_steps(folder: pathlib.Path) -> list[int]:
  """The steps of all checkpoints in a folder, in order, damaged or not."""
  if not folder.is_dir():
    return []
  names = [path.name for path in folder.iterdir() if path.is_dir()]
  return sorted(int(name) for name in names if name.isdigit())


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
  """Turns errors while a checkpoint is read into `DamagedError`."""
  try:
    yield
  # These errors do not mean that the checkpoint is damaged.
  except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except OSError as error:
    if isinstance(error, _NOT_THERE):
      raise DamagedError(path, _reason(error)) from error
    raise CheckpointError(
      f'{path}: cannot be read now ({_reason(error)}): fix this, and give the '
      'same command again'
    ) from error
  # Orbax and TensorStore raise many types for a damaged or missing file.
  except Exception as error:
    raise DamagedError(path, _reason(error)) from error


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Turns errors while a checkpoint is written into `CheckpointError`."""
  try:
    yield
  except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:
    if jax.process_count() > 1 and is_of_lost_process(error):
      raise
    # The incomplete checkpoint takes space that the next start needs.
    for path in folder.glob('[0-9]*tmp*'):
      shutil.rmtree(path, ignore_errors=True)
    reason, advice = _reason(error), 'fix this'
    if is_full_disk(error):
      advice = 'make room'
    raise CheckpointError(
      f'{folder}: a checkpoint could not be written ({reason}). Earlier '
      f'checkpoints are intact: {advice}, and give the same command to resume'
    ) from error


def _reason(error: Exception) -> str:
  first, *_ = str(error).split('\n')
  # TensorStore appends locations in its source code.
  first, *_ = first.split(' [source locations=')
  if len(first) > _LONGEST:
    first = first[:_LONGEST] + '...'
  return f'{type(error).__name__}: {first}'


def score_key(metrics: Mapping[str, Any]) -> tuple[float, int]:
  """The sort key of a checkpoint with this score; the largest is the best."""
  # Among equal scores the first wins: longer training has to improve the score.
  return float(metrics['score']), -int(metrics['step'])


def best_of(folder: pathlib.Path) -> int | None:
  """The step with the best score, the first of equals; None without one."""
  keys = {step: _saved_key(folder / str(step)) for step in saved_steps(folder)}
  scored = [step for step, key in keys.items() if key]
  return max(scored, key=keys.__getitem__, default=None)


def unreadable(folder: pathlib.Path) -> list[DamagedError]:
  """Finds checkpoints with a damaged score or log, which Orbax does not name.

  Raises:
    CheckpointError: the scores or logs of all checkpoints are damaged.
  """
  found, steps = [], saved_steps(folder)
  for step in steps:
    try:
      _saved_key(folder / str(step))
      log_of(folder / str(step))
    except DamagedError as error:
      found.append(error)
  if found and len(found) == len(steps):
    raise all_damaged(found[-1])
  return found


def _saved_key(path: pathlib.Path) -> tuple[float, int] | None:
  try:
    return score_key(json.loads((path / 'metrics' / 'metrics').read_bytes()))
  except FileNotFoundError as error:
    if 'metrics' in _items_of(path):
      raise DamagedError(path, 'its score is missing') from error
    return None  # Not all checkpoints have a score.
  except (ValueError, TypeError, KeyError) as error:
    raise DamagedError(path, f'its score: {_reason(error)}') from error


def _items_of(path: pathlib.Path) -> set[str]:
  """The items of a checkpoint, by Orbax's metadata and by its folders."""
  try:
    items = {folder.name for folder in path.iterdir() if folder.is_dir()}
  except FileNotFoundError:
    return set()  # Another process has just removed the checkpoint.
  try:
    noted = json.loads((path / '_CHECKPOINT_METADATA').read_bytes())
    return items | noted['item_handlers'].keys()
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return items


def log_of(path: pathlib.Path) -> dict[str, Any] | None:
  """The log entry that was saved with a checkpoint; None without one.

  Raises:
    DamagedError: the entry cannot be read, or is that of another step.
  """
  file = path / LOG / 'metadata'
  with reading(path):
    log = json.loads(file.read_bytes()) if file.parent.exists() else None
    if not isinstance(log, dict | None):
      raise ValueError('its log is not an object')
  saved_at = log.get('until') if log else None
  if saved_at not in (None, int(path.name)):
    raise DamagedError(path, f'it was saved at step {saved_at}')
  return log


def all_damaged(newest: DamagedError) -> CheckpointError:
  """The error for a folder in which every checkpoint is damaged."""
  return CheckpointError(
    f'{newest.path.parent}: all checkpoints are damaged; the newest: '
    f'{newest.reason}. Choose another --workdir, or, if there is no copy of '
    'this folder, remove it to train from the start'
  )


def quarantine(damaged: DamagedError) -> str:
  """Moves a damaged checkpoint to another folder.

  Returns:
    A line that reports the damage and the folder.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / 'checkpoints' / '8'
    >>> path.mkdir(parents=True)
    >>> quarantine(DamagedError(path, 'empty'))
    '...8: damaged (empty). It was moved to .../damaged_checkpoints and...'
    >>> path.exists()
    False
  """
  path = damaged.path
  folder = path.parent.with_name(f'damaged_{path.parent.name}')
  folder.mkdir(exist_ok=True)
  moved, count = folder / path.name, 1
  while moved.exists():
    count += 1
    moved = folder / f'{path.name}.{count}'
  path.rename(moved)
  return (
    f'{path}: damaged ({damaged.reason}). It was moved to {folder} and is not '
    'used'
  )
