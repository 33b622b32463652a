"""The folder of a run, which is created, opened again or refused.

With several processes, only the main process writes.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import socket
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import filelock
import numpy as np

from adaptssr_jax.checkpoint.files import NO_ROOM
from adaptssr_jax.data import UserData
from adaptssr_jax.files import atomic_path, locked
from experiments.flags.binder import SettingsError
from experiments.flags.flag_files import differing_flags
from experiments.flags.shared import RunSettings
from experiments.run.agreement import check_shared
from experiments.run.process import is_main_process

_FLAGS = 'flags.txt'
_LOCK = '.lock'
_HOLDER = '.lock_holder'
_PART = '.part'
METRICS = 'metrics.jsonl'
RESULT = 'result.json'
SIMILARITIES = 'similarity.json'
_DATASET = 'dataset.txt'
# The name of user tables contains a hash of these files, which may have moved.
_MOVABLE = {'events', 'labels'}
# Raised by a function that reads JSON of another form than it expects.
_OTHER_CONTENT = (ValueError, LookupError, TypeError, AttributeError)
_OTHER_CONTENT += (ArithmeticError, StopIteration)


@contextlib.contextmanager
def opened_workdir(
  settings: RunSettings, data_name: str | None = ''
) -> Iterator[pathlib.Path]:
  """Makes the folder of a run with its `flags.txt`, or opens it to resume.

  The folder is locked until exit. It is refused if it holds other files, or a
  run with other settings.

  Args:
    data_name: the name of the data; '' if no run has their name. For a run on
      these data the files of --events and --labels may have moved. None: the
      data are not open, and may be those of the run.
  """
  folder = pathlib.Path(settings.workdir)
  if not is_main_process():
    check_shared(folder / _HOLDER)
    yield folder
    return
  with contextlib.ExitStack() as stack:
    with writing(folder):
      _refuse_other_files(folder)
      folder.mkdir(parents=True, exist_ok=True)
      stack.enter_context(_locked(folder))
    refuse_other_run(settings, data_name)
    atomic_write(folder / _FLAGS, settings.to_flagfile())
    check_shared(folder / _HOLDER)
    yield folder


def refuse_other_run(
  settings: RunSettings, data_name: str | None = None
) -> None:
  """Refuses a folder that holds other files, or a run with other settings.

  Args:
    data_name: as in `opened_workdir`.
  """
  folder = pathlib.Path(settings.workdir)
  with writing(folder):
    _refuse_other_files(folder)
    if not _has_trained(folder):
      return
    dataset, same = folder / _DATASET, f'{data_name}\n'.encode()
    same_data = data_name is None or (
      dataset.exists() and dataset.read_bytes() == same
    )
    differing = differing_settings(
      saved_flags(folder), settings, same_data=same_data
    )
  if not differing:
    return
  for name in ('pretrained', 'init_from'):
    source = getattr(settings, name, '')
    if source and folder.resolve() == pathlib.Path(source).resolve():
      raise SettingsError(
        f'--workdir={settings.workdir} is the folder of --{name}: choose '
        'another one for this run'
      )
  raise SettingsError(
    f'--workdir={settings.workdir} holds a run with other settings: '
    f'{differing}. Choose another folder, or give it the settings of '
    f'{folder / _FLAGS}'
  )


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Turns errors of the disk into a `SettingsError` with advice."""
  try:
    yield
  except OSError as error:
    advice = 'choose another folder'
    if error.errno in NO_ROOM:
      advice = 'make room, and give the same command again'
    raise SettingsError(
      f'--workdir={folder} cannot be written ({error.strerror}): {advice}'
    ) from error


@contextlib.contextmanager
def reading_json(path: pathlib.Path, *, writer: str) -> Iterator[Any]:
  """Yields what a JSON file of `writer`, a command, holds.

  Errors in its use become a `SettingsError` that names the file.
  """
  try:
    yield json.loads(path.read_bytes())
  except SettingsError:
    raise
  except _OTHER_CONTENT as error:
    raise SettingsError(
      f'{path} is not what {writer} writes: remove it, and run that again'
    ) from error


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Locks the folder until exit, or until the process ends."""
  path, holder = folder / _LOCK, folder / _HOLDER
  with contextlib.ExitStack() as stack:
    try:
      # `is_in_use` of another process holds the lock for an instant.
      stack.enter_context(locked(path, timeout=0.3))
    except filelock.Timeout:
      raise _in_use(folder) from None
    # In a file of its own: on Windows others cannot read the locked file.
    holder.write_text(f'process {os.getpid()} on {socket.gethostname()}')
    try:
      yield
    finally:
      # Before the lock is released; later they might belong to another run.
      for used in (holder, path):
        with contextlib.suppress(OSError):
          used.unlink()


def _in_use(folder: pathlib.Path) -> SettingsError:
  other = ''
  with contextlib.suppress(OSError):
    other = (folder / _HOLDER).read_text(errors='replace')
  return SettingsError(
    f'--workdir={folder} is in use by {other or "another run"}: wait until it '
    'ends, or choose another folder'
  )


def _refuse_other_files(folder: pathlib.Path) -> None:
  if not folder.is_dir() or (folder / _FLAGS).exists():
    return
  # Left by a run that was killed before it wrote its flags.
  ours = {_LOCK, _HOLDER, f'{_FLAGS}{_PART}'}
  if any(path.name not in ours for path in folder.iterdir()):
    raise SettingsError(
      f'--workdir={folder} holds files but no {_FLAGS}, so it is not the '
      'folder of a run: choose another'
    )


def saved_flags(folder: pathlib.Path) -> dict[str, str]:
  """The flags in `flags.txt` of a run, by name; empty if there is no file.

  The values of a repeated flag are separated by line breaks, as in
  `Settings.flag_values`.
  """
  path, flags = folder / _FLAGS, {}
  text = path.read_text('utf-8', 'replace') if path.exists() else ''
  for line in text.splitlines():
    if line.startswith('--'):
      name, _, value = line[2:].partition('=')
      flags[name] = f'{flags[name]}\n{value}' if name in flags else value
  return flags


def is_in_use(folder: pathlib.Path) -> bool:
  """Whether a run is using a folder; False if that cannot be found out."""
  path = folder / _LOCK
  if not path.exists():
    return False
  try:
    # A run that was killed leaves the file, but not the lock.
    with locked(path):
      return False
  except filelock.Timeout:
    return True
  except OSError:
    return False


def differing_settings(
  before: Mapping[str, str], settings: RunSettings, *, same_data: bool
) -> str:
  """Describes the flags with which a run cannot be resumed, if there are any.

  Args:
    before: the flags of the run.
    same_data: whether the data are known to be those of the run.
  """
  return differing_flags(
    before,
    settings.flag_values(),
    settings.mutable_names() | (_MOVABLE if same_data else set()),
    defaults=settings.default_values(),
  )


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file in the main process; a reader never finds a part of it."""
  if not is_main_process():
    return
  if isinstance(content, str):
    content = content.encode()
  with writing(path.parent), atomic_path(path, suffix=_PART) as temporary:
    temporary.write_bytes(content)


def atomic_savez(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes arrays as `numpy.savez` does, by `atomic_write`."""
  file = io.BytesIO()
  np.savez(file, **arrays)
  atomic_write(path, file.getvalue())


def write_dataset(folder: pathlib.Path, data: UserData) -> None:
  """Writes `dataset.txt`, and `vocabulary`: the raw id of item i in line i.

  The ids are JSON strings, since an id may contain a line break. If the folder
  holds a run on other data, a `SettingsError` is raised; the flags may be the
  same although the data have changed.
  """
  if not is_main_process():
    return
  items = (f'{json.dumps(item)}\n' for item in data.vocabulary.items)
  texts = {_DATASET: f'{data.name}\n', 'vocabulary': ''.join(items)}
  advice = 'Choose another folder'
  if data.kind == 'pretrain':
    advice += f'; --init_from={folder} starts from the encoder of this run'
  for name, text in texts.items():
    path, wanted = folder / name, text.encode()
    if _has_trained(folder) and path.exists() and path.read_bytes() != wanted:
      raise SettingsError(
        f'--workdir={folder} holds a run on other data: its {name} differs '
        f'from that of {data.name}. {advice}'
      )
  for name, text in texts.items():
    atomic_write(folder / name, text)


def _has_trained(folder: pathlib.Path) -> bool:
  """Whether the folder has metrics, a checkpoint or the result of a command.

  Otherwise the run failed early, and may be started with other flags or data.
  """
  if any((folder / name).exists() for name in (RESULT, SIMILARITIES)):
    return True
  metrics, checkpoints = folder / METRICS, folder / 'checkpoints'
  logged = metrics.exists() and metrics.stat().st_size > 0
  return logged or (checkpoints.is_dir() and any(checkpoints.iterdir()))


@functools.cache
def commit() -> str:
  """The commit of the code by `git describe`; 'unknown' without a checkout."""
  # With --git-dir, a repository around an installation is not taken for ours.
  command = ['git', '--git-dir=.git', 'describe', '--always', '--dirty']
  try:
    done = subprocess.run(
      command,
      cwd=pathlib.Path(__file__).parents[2],
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
  return done.stdout.strip()
