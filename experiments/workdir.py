"""The folder of a run: made, resumed, or refused."""

import json
import pathlib
from collections.abc import Collection, Mapping

from adaptssr_jax.data import UserData
from experiments.settings import SettingsError
from experiments.shared_settings import RunSettings

_FLAGS = 'flags.txt'
METRICS = 'metrics.jsonl'
RESULT = 'result.json'


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
      if _has_trained(folder):
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
  before = dict(
    line[2:].split('=', 1) for line in lines if line.startswith('--')
  )
  now = settings.flag_values()
  free = settings.names_free_to_change()
  differing = differing_flags(before, now, free)
  if differing:
    raise SettingsError(
      f'--workdir={settings.workdir} holds a run with other settings: '
      f'{differing}. Choose another folder, or give it the settings '
      f'of {saved}'
    )


def differing_flags(
  before: Mapping[str, str],
  now: Mapping[str, str],
  free: Collection[str] = (),
) -> str:
  """The flags that changed, other than those that are free to.

  Example:
    >>> differing_flags({'seed': '3', 'task': 'age'}, {'task': 'age'})
    '--seed was 3, is not given'
  """
  return '; '.join(
    f'--{name} was {before.get(name, "not given")}, '
    f'is {now.get(name, "not given")}'
    for name in sorted((before.keys() | now.keys()) - set(free))
    if before.get(name) != now.get(name)
  )


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file such that a reader never finds half of it."""
  aside = path.with_name(path.name + '.part')
  aside.write_text(text)
  aside.rename(path)


def write_dataset(folder: pathlib.Path, data: UserData) -> None:
  """Writes `dataset.txt`, and `vocabulary`: the raw id of item i in line i.

  The ids are JSON strings, since an id may hold the end of a line.

  Raises:
    SettingsError: the run was trained on other data, which no flag need show:
      tables were changed, or a data set was prepared anew.
  """
  items = (f'{json.dumps(item)}\n' for item in data.vocabulary.items)
  texts = {'dataset.txt': f'{data.name}\n', 'vocabulary': ''.join(items)}
  for name, text in texts.items():
    path = folder / name
    if _has_trained(folder) and path.exists() and path.read_text() != text:
      raise SettingsError(
        f'--workdir={folder} holds a run on other data: its {name} is not that '
        f'of {data.name} now. Choose another folder'
      )
  for name, text in texts.items():
    write_whole(folder / name, text)


def _has_trained(folder: pathlib.Path) -> bool:
  """A run that failed before it left anything binds nobody to anything."""
  if (folder / RESULT).exists():
    return True
  metrics, checkpoints = folder / METRICS, folder / 'checkpoints'
  logged = metrics.exists() and metrics.stat().st_size > 0
  return logged or (checkpoints.is_dir() and any(checkpoints.iterdir()))
