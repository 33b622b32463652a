"""The files of checkpoints: which there are, and what is wrong with them.

All of this is without Orbax, which stops at the first file that it cannot read.
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

# The folder of all checkpoints, in that of their run.
FOLDER = 'checkpoints'
# The item of a checkpoint that is the log.
LOG = 'log'
# Characters of an error of Orbax that a message quotes.
_LONGEST = 300
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Of a disk that is full, or as good as.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DamagedError(CheckpointError):
  """A checkpoint lacks a part of its files, or cannot read them.

  Args:
    path: of the checkpoint.
    reason: what was seen.
  """

  def __init__(self, path: pathlib.Path, reason: str):
    self.path, self.reason = path, reason
    super().__init__(f'{path}: damaged ({reason}).{_advice(path)}')


def _advice(path: pathlib.Path) -> str:
  if not path.name.isdigit():
    return ''
  before = [step for step in saved_steps(path.parent) if step < int(path.name)]
  if not before:
    return ' There is none before it'
  return f' The one before is {path.with_name(str(max(before)))}'


def find(path: str | pathlib.Path) -> tuple[pathlib.Path, int | None]:
  """The folder of the checkpoints at a path, and the step if that names one."""
  folder = pathlib.Path(path).absolute()
  if (folder / FOLDER).is_dir():
    folder = folder / FOLDER
  if not folder.is_dir():
    raise CheckpointError(f'{path}: no such folder; give the workdir of a run')
  if folder.name.isdigit() and folder.parent.name == FOLDER:
    return folder.parent, int(folder.name)
  return folder, None


def saved_steps(folder: pathlib.Path) -> list[int]:
  """The steps of the checkpoints in a folder, whole or not, in order."""
  if not folder.is_dir():
    return []
  names = [path.name for path in folder.iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
  """Turns errors while a checkpoint is read into `DamagedError`."""
  try:
    yield
  # Nothing is wrong with the checkpoint there.
  except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except OSError as error:
    if isinstance(error, _NOT_THERE):
      raise DamagedError(path, _reason(error)) from error
    raise CheckpointError(
      f'{path}: cannot be read now ({_reason(error)}): mend that, and give the '
      'same command to go on'
    ) from error
  # Orbax and TensorStore raise many types for a damaged or missing file.
  except Exception as error:
    raise DamagedError(path, _reason(error)) from error


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """What goes wrong while a checkpoint is written becomes one line."""
  try:
    yield
  except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:
    if jax.process_count() > 1 and is_of_lost_process(error):
      raise
    # What there is of it takes room that the next start needs.
    for path in folder.glob('[0-9]*tmp*'):
      shutil.rmtree(path, ignore_errors=True)
    reason, advice = _reason(error), 'mend that'
    if any(os.strerror(number) in str(error) for number in NO_ROOM):
      advice = 'make room'
    raise CheckpointError(
      f'{folder}: a checkpoint could not be written ({reason}). The ones '
      f'before are whole: {advice}, and give the same command to go on'
    ) from error


def _reason(error: Exception) -> str:
  first, *_ = str(error).split('\n')
  # TensorStore adds where in its own code.
  first, *_ = first.split(' [source locations=')
  if len(first) > _LONGEST:
    first = first[:_LONGEST] + '...'
  return f'{type(error).__name__}: {first}'


def rank(metrics: Mapping[str, Any]) -> tuple[float, int]:
  """The sort key of a checkpoint, from its saved score; the largest is best."""
  # Among equals the first: more training must show to be preferred.
  return float(metrics['score']), -int(metrics['step'])


def best_of(folder: pathlib.Path) -> int | None:
  """The step with the best score, the first of equals; None without one."""
  ranks = {step: _rank_of(folder / str(step)) for step in saved_steps(folder)}
  scored = [step for step, found in ranks.items() if found]
  return max(scored, key=ranks.__getitem__, default=None)


def unreadable_scores(folder: pathlib.Path) -> list[DamagedError]:
  """The checkpoints whose score Orbax would fail to read, not naming them.

  Raises:
    CheckpointError: it is all of them.
  """
  found, steps = [], saved_steps(folder)
  for step in steps:
    try:
      _rank_of(folder / str(step))
    except DamagedError as error:
      found.append(error)
  if found and len(found) == len(steps):
    raise none_is_whole(found[-1])
  return found


def _rank_of(path: pathlib.Path) -> tuple[float, int] | None:
  try:
    return rank(json.loads((path / 'metrics' / 'metrics').read_bytes()))
  except FileNotFoundError as error:
    if 'metrics' in _items_of(path):
      raise DamagedError(path, 'its score is missing') from error
    return None  # Not all have one.
  except (ValueError, TypeError, KeyError) as error:
    raise DamagedError(path, f'its score: {_reason(error)}') from error


def _items_of(path: pathlib.Path) -> set[str]:
  """What was saved in a checkpoint, by what Orbax notes and by its folders."""
  try:
    items = {folder.name for folder in path.iterdir() if folder.is_dir()}
  except FileNotFoundError:
    return set()  # Another process has just removed all of it.
  try:
    noted = json.loads((path / '_CHECKPOINT_METADATA').read_bytes())
    return items | noted['item_handlers'].keys()
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return items


def log_of(path: pathlib.Path) -> dict[str, Any] | None:
  """What was saved as the log with a checkpoint, if anything."""
  file = path / LOG / 'metadata'
  with reading(path):
    return json.loads(file.read_bytes()) if file.parent.exists() else None


def none_is_whole(newest: DamagedError) -> CheckpointError:
  """There are checkpoints, all of them damaged."""
  return CheckpointError(
    f'{newest.path.parent}: no checkpoint is whole, the newest is damaged '
    f'({newest.reason}). Choose another --workdir, or, if no copy of it can be '
    'had, remove this folder to begin anew'
  )


def quarantine(damaged: DamagedError) -> str:
  """Moves a damaged checkpoint out of the way, and says so.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / 'checkpoints' / '8'
    >>> path.mkdir(parents=True)
    >>> quarantine(DamagedError(path, 'empty'))
    '...8: damaged (empty). It is in .../damaged_checkpoints now, and...'
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
    f'{path}: damaged ({damaged.reason}). It is in {folder} now, and is not '
    'used'
  )
