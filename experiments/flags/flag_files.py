"""Flag files: how they are found and read, and how the flags of two differ."""

import os
import pathlib
import re
import types
from collections.abc import Collection, Mapping, Sequence

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_FLAG = '--flagfile'
# The number of flags that an error names; those of another command differ in
# nearly all.
_NAMED = 8


class SettingsError(ValueError):
  """A flag has an invalid value; the message names the flag."""


class FlagFileWord(str):
  """A word of a flag file, with its location."""

  location = ''


def find_flagfile(
  name: str | os.PathLike, *, included_by: pathlib.Path | None = None
) -> pathlib.Path:
  """The flag file of a path, or of a name in `configs`.

  Args:
    included_by: the file that includes it, whose folder is searched first.
  """
  path = pathlib.Path(name)
  candidates = [path, CONFIGS / path]
  if included_by is not None:
    candidates.insert(0, included_by.parent / path)
  for found in candidates:
    try:
      found = found.expanduser()
      # Not `is_file`, since it may be a pipe.
      if found.exists() and not found.is_dir():
        return found
    except (OSError, RuntimeError) as error:
      raise SettingsError(f'{_FLAG}={name} cannot be read: {error}') from error
  names = sorted(found.name for found in CONFIGS.glob('*.flags'))
  raise SettingsError(
    f'{_FLAG}={name}: no such file. The package has: {", ".join(names)}'
  )


def with_flagfiles(words: Sequence[str]) -> list[str]:
  """The words of a command, with each --flagfile replaced by its words.

  Files may include others. Lines that start with # or // are comments.
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
  """The words of one file, and of the files that it includes."""
  path = find_flagfile(name, included_by=within[-1] if within else None)
  if path in within:
    raise SettingsError(
      f'{_FLAG}={name}: the file includes itself; leave that out'
    )
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise SettingsError(f'{_FLAG}={name} cannot be read: {error}') from error
  words = []
  for number, line in enumerate(map(str.strip, lines), start=1):
    if line and not line.startswith(('#', '//')):
      word = FlagFileWord(line)
      word.location = f'{path}, line {number}'
      words.append(word)
  return _expanded(words, (*within, path))


def with_location(message: str, words: Sequence[str]) -> str:
  """Appends to a message about a flag its location, if in a flag file.

  Args:
    message: contains the name of the flag as `--seed`, or as absl writes it,
      `flag --seed=x` or `flag 'seed'`.
    words: the words of the command, from `with_flagfiles`.
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
  # The last occurrence sets the value.
  location = getattr(given[-1], 'location', '') if given else ''
  return f'{message} ({location})' if location else message


def differing_flags(
  before: Mapping[str, str],
  now: Mapping[str, str],
  free: Collection[str] = (),
  *,
  defaults: Mapping[str, str] = types.MappingProxyType({}),
) -> str:
  """Describes the flags whose values differ, except for mutable ones.

  Args:
    before: the flags of the existing run.
    now: the flags of this command.
    free: the names of flags that may differ.
    defaults: the values in `before` of flags that it does not have.

  Example:
    >>> differing_flags({'seed': '3', 'task': 'age'}, {'task': 'age'})
    '--seed was 3, is not given'
    >>> differing_flags({}, {'task': 'age'}, defaults={'task': 'age'})
    ''
  """
  before = {name: defaults[name] for name in now if name in defaults} | before
  found = [
    f'--{name} was {before.get(name, "not given")}, '
    f'is {now.get(name, "not given")}'
    for name in sorted((before.keys() | now.keys()) - set(free))
    if before.get(name) != now.get(name)
  ]
  if len(found) > _NAMED:
    found[_NAMED:] = [f'and {len(found) - _NAMED} more']
  return '; '.join(found)
