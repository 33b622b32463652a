"""Files of flags: found by path, or by name among those of the package."""

import os
import pathlib
import re
from collections.abc import Sequence

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_FLAG = '--flagfile'


class SettingsError(ValueError):
  """A flag has a value that it cannot have; the message names it."""


class FlagFileWord(str):
  """A word of a flag file, which knows where it stands."""

  place = ''


def find_flagfile(
  name: str | os.PathLike, *, beside: pathlib.Path | None = None
) -> pathlib.Path:
  """The file of a path, or else the one of that name in `configs`.

  Args:
    beside: the file that names it, in whose folder it is looked for first.
  """
  path = pathlib.Path(name)
  places = [path, CONFIGS / path]
  if beside is not None:
    places.insert(0, beside.parent / path)
  for found in places:
    try:
      found = found.expanduser()
      # It may be a pipe.
      if found.exists() and not found.is_dir():
        return found
    except (OSError, RuntimeError) as error:
      raise SettingsError(f'{_FLAG}={name} cannot be read: {error}') from error
  names = sorted(found.name for found in CONFIGS.glob('*.flags'))
  raise SettingsError(
    f'{_FLAG}={name}: no such file. By name there are: {", ".join(names)}'
  )


def with_flagfiles(words: Sequence[str]) -> list[str]:
  """The words of a command, with those of a file in place of each --flagfile.

  Files may name others. Lines that begin with # or // say nothing.
  """
  return _expanded(list(words), ())


def _expanded(words: list[str], within: tuple[pathlib.Path, ...]) -> list[str]:
  expanded = []
  while words:
    word = words.pop(0)
    flag, is_given, name = word.partition('=')
    if f'-{flag.lstrip("-")}' != _FLAG[1:] or not flag.startswith('-'):
      expanded.append(word)
      continue
    if not is_given:
      if not words:
        raise SettingsError(f'{_FLAG} needs a file: {_FLAG}=FILE')
      name = words.pop(0)
    if name:
      expanded += _read(name, within)
  return expanded


def _read(name: str, within: tuple[pathlib.Path, ...]) -> list[str]:
  """The words of one file, and of those that it names."""
  path = find_flagfile(name, beside=within[-1] if within else None)
  if path in within:
    raise SettingsError(
      f'{_FLAG}={name}: the file names itself; leave that out'
    )
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise SettingsError(f'{_FLAG}={name} cannot be read: {error}') from error
  words = []
  for number, line in enumerate(map(str.strip, lines), start=1):
    if line and not line.startswith(('#', '//')):
      word = FlagFileWord(line)
      word.place = f'{path}, line {number}'
      words.append(word)
  return _expanded(words, (*within, path))


def with_place(message: str, words: Sequence[str]) -> str:
  """A message about a flag, with where it stands if that is a flag file.

  Args:
    message: names the flag, as `--seed`, or as absl does, `flag --seed=x` or
      `flag 'seed'`.
    words: of the command, by `with_flagfiles`.
  """
  named = re.search(r"--(?:no)?(\w+)|flag '(\w+)'", message)
  if not named:
    return message
  name = named[1] or named[2]
  given = [
    word
    for word in words
    if re.fullmatch(rf'--?(no)?{name}(=.*)?', word, re.DOTALL)
  ]
  # The last one counts.
  place = getattr(given[-1], 'place', '') if given else ''
  return f'{message} ({place})' if place else message
