"""Whether the processes of a run were given the same command and folder."""

import dataclasses
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.flags.binder import Settings, SettingsError
from experiments.flags.process import DistributedSettings

# Folders that may have another path in each process.
_PATHS = {'workdir', 'data_dir', 'manual_dir'}
# Seconds that a network file system may need to show a new file.
_SECONDS = 10.0


def check_same_flags(settings: Settings) -> None:
  """Raises `SettingsError` in all processes if their flags differ.

  Otherwise each would train in its own way, or wait for the others forever.
  """
  # Processes with different numbers of devices cannot exchange arrays; the
  # commands raise an error about them.
  uneven = jax.device_count() != jax.process_count() * jax.local_device_count()
  if jax.process_count() == 1 or uneven:
    return
  texts = _texts_of_all(_text(settings))
  first = texts[0]
  other = next((i for i, text in enumerate(texts) if text != first), None)
  if other is None:
    return
  differing = sorted(set(first.split('\n')) ^ set(texts[other].split('\n')))
  raise SettingsError(
    f'processes 0 and {other} were given different commands: they differ in '
    f'{", ".join(differing)}. Give the same command to all processes'
  )


def _text(settings: Settings) -> str:
  """The command and the flags that all processes must have, a line each."""
  names = {field.name for field in dataclasses.fields(DistributedSettings)}
  own = _PATHS | names - {'num_processes'}
  flags = settings.flag_values(without=own)
  lines = [f'--{name}={value!r}' for name, value in flags.items()]
  return '\n'.join([type(settings).__name__, *lines])


def check_shared(path: pathlib.Path) -> None:
  """Raises `SettingsError` in a process that does not see a file of process 0.

  All processes must call it.

  Args:
    path: a file that process 0 has just written, with other content than
      before.
  """
  if jax.process_count() == 1:
    return
  text = path.read_text() if jax.process_index() == 0 else ''
  wanted = _texts_of_all(text)[0]
  deadline = time.monotonic() + _SECONDS
  while not _has(path, wanted):
    if time.monotonic() > deadline:
      raise SettingsError(
        f'process {jax.process_index()} does not see the files of process 0 in '
        f'--workdir={path.parent.absolute()}: give all processes the same '
        'folder of a shared file system'
      )
    time.sleep(0.2)


def _has(path: pathlib.Path, text: str) -> bool:
  try:
    # A network file system looks for new files when a folder is listed.
    list(path.parent.iterdir())
    return path.read_text() == text
  except OSError:
    return False


def _texts_of_all(text: str) -> list[str]:
  """The texts of all processes."""
  data = text.encode()
  size = multihost_utils.process_allgather(np.int32(len(data))).max()
  padded = np.frombuffer(data.ljust(size, b'\0'), np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row.tobytes().rstrip(b'\0').decode() for row in rows]
