"""The folder of a run: made, resumed, or refused."""

import json
import pathlib
from collections.abc import Sequence

from experiments.settings import SettingsError
from experiments.shared_settings import RunSettings

_FLAGS = 'flags.txt'
METRICS = 'metrics.jsonl'


def open_workdir(settings: RunSettings) -> pathlib.Path:
  """Makes the folder of a run, or opens it again to resume.

  Args:
    settings: of the run; `workdir` names the folder.

  Returns:
    The folder, which holds `flags.txt`.

  Raises:
    SettingsError: the folder cannot be written, holds other things, or belongs
      to a run with other settings, which are named.
  """
  folder = pathlib.Path(settings.workdir)
  saved = folder / _FLAGS
  try:
    if saved.exists():
      # A run that failed before its first step binds nobody to its settings.
      if (folder / METRICS).exists():
        _refuse_other_settings(settings, saved)
    elif folder.is_dir() and any(folder.iterdir()):
      raise SettingsError(
        f'--workdir={folder} holds files but no {_FLAGS}, so it is not the '
        'folder of a run: choose another'
      )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(saved, settings.to_flagfile())
  except OSError as error:
    raise SettingsError(
      f'--workdir={folder} cannot be written ({error.strerror}): choose '
      'another folder'
    ) from error
  return folder


def _refuse_other_settings(settings: RunSettings, saved: pathlib.Path) -> None:
  lines = saved.read_text().splitlines()
  before = dict(line[2:].split('=', 1) for line in lines)
  now = settings.flag_values()
  free = settings.names_free_to_change()
  names = sorted((before.keys() | now.keys()) - free)
  differing = [
    f'--{name} was {before.get(name, "not given")}, '
    f'is {now.get(name, "not given")}'
    for name in names
    if before.get(name) != now.get(name)
  ]
  if differing:
    raise SettingsError(
      f'--workdir={settings.workdir} holds a run with other settings: '
      f'{"; ".join(differing)}. Choose another folder, or give it the settings '
      f'of {saved}'
    )


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file such that a reader never finds half of it."""
  aside = path.with_name(path.name + '.part')
  aside.write_text(text)
  aside.rename(path)


def write_vocabulary(folder: pathlib.Path, items: Sequence[str]) -> None:
  """Writes the raw item ids as JSON strings, that of item i in line i."""
  write_whole(
    folder / 'vocabulary', ''.join(f'{json.dumps(item)}\n' for item in items)
  )
