"""Settings of a command: a frozen dataclass whose fields are absl flags.

A flag file is found by its path, or by its name among those of the package.
"""

import dataclasses
import operator
import os
import pathlib
import types
import typing
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from absl import flags

_BOUNDS = (
  ('low', 'at least', operator.ge),
  ('above', 'above', operator.gt),
  ('high', 'at most', operator.le),
)
_DEFINE = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_bool,
  tuple: flags.DEFINE_list,
}
CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_FLAG = '--flagfile'


class SettingsError(ValueError):
  """A flag has a value that it cannot have; the message names it."""


def flag(
  default: Any,
  help: str,
  *,
  low: float | None = None,
  above: float | None = None,
  high: float | None = None,
  choices: tuple[str, ...] = (),
  mutable_on_resume: bool = False,
) -> Any:
  """A field that is a flag.

  Args:
    default: its value where the flag is not given.
    help: what it sets, with its unit.
    low: the least value allowed.
    above: a value that must be exceeded.
    high: the largest value allowed.
    choices: the words allowed, of which a tuple may hold several.
    mutable_on_resume: whether a run may be resumed with another value.

  Returns:
    The dataclass field.
  """
  return dataclasses.field(
    default=default,
    metadata={
      'help': help,
      'low': low,
      'above': above,
      'high': high,
      'choices': choices,
      'mutable_on_resume': mutable_on_resume,
    },
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Base of the settings of all commands: every value is checked.

  Args of a class:
    group: the title under which `--help` has its flags, if several commands
      have them.
  """

  group: ClassVar[str] = ''

  def __init_subclass__(cls, *, group: str = '') -> None:
    cls.group = group

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name))

  def flag_values(self, *, without: Collection[str] = ()) -> dict[str, str]:
    """Flag name to text, of every (other) setting that has a value."""
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in without
    }
    return {
      name: _text(value) for name, value in values.items() if value is not None
    }

  def names_free_to_change(self) -> set[str]:
    """The settings that a resumed run may have otherwise."""
    return {
      field.name
      for field in dataclasses.fields(self)
      if field.metadata['mutable_on_resume']
    }

  def to_flagfile(self) -> str:
    """The settings as a file for `--flagfile`."""
    values = self.flag_values()
    return ''.join(f'--{name}={value}\n' for name, value in values.items())


def _check(field: dataclasses.Field, value: Any) -> None:
  if value is None:
    return
  rule = field.metadata
  if isinstance(field.default, tuple) and isinstance(value, str):
    raise SettingsError(
      f'--{field.name} holds several words: give a tuple of them, not {value!r}'
    )
  words = value if isinstance(value, tuple) else (value,)
  if rule['choices'] and not words:
    raise SettingsError(
      f'--{field.name} needs at least one of {", ".join(rule["choices"])}'
    )
  for word in words if rule['choices'] else ():
    if word not in rule['choices']:
      raise SettingsError(
        f'--{field.name} must be {" or ".join(rule["choices"])}, not {word!r}'
      )
  for bound, words, holds in _BOUNDS:
    # nan is within no bounds.
    if rule[bound] is not None and not holds(value, rule[bound]):
      raise SettingsError(
        f'--{field.name} must be {words} {rule[bound]}, not {value}'
      )


def define_flags(
  settings_type: type[Settings],
  values: flags.FlagValues,
  module_name: str | None = None,
) -> None:
  """Defines a flag for every field of a settings class."""
  hints = typing.get_type_hints(settings_type)
  for field in dataclasses.fields(settings_type):
    define = _DEFINE[_plain_type(hints[field.name])]
    default = field.default
    if isinstance(default, tuple):
      default = list(default)
    define(
      field.name,
      default,
      help_text(field),
      flag_values=values,
      module_name=module_name,
    )


def help_text(field: dataclasses.Field) -> str:
  """What a flag sets, and the words that it may have."""
  text = field.metadata['help']
  if field.metadata['choices']:
    text += f' One of: {", ".join(field.metadata["choices"])}.'
  return text


def _text(value: Any) -> str:
  return ','.join(value) if isinstance(value, tuple) else str(value)


def default_text(field: dataclasses.Field) -> str:
  """The default of a flag as it is given; '' if it has none."""
  return '' if field.default is None else _text(field.default)


def _plain_type(hint: Any) -> type:
  """`int` for `int | None`, `tuple` for `tuple[str, ...]`."""
  if isinstance(hint, types.UnionType):
    hint = typing.get_args(hint)[0]
  return typing.get_origin(hint) or hint


def from_flags(
  settings_type: type[Settings], values: flags.FlagValues
) -> Settings:
  """The settings that the parsed flags say.

  Raises:
    SettingsError: a flag has a value that it cannot have.
  """
  named = {
    field.name: values[field.name].value
    for field in dataclasses.fields(settings_type)
  }
  return settings_type(
    **{
      name: tuple(value) if isinstance(value, list) else value
      for name, value in named.items()
    }
  )


def from_flagfile(
  settings_type: type[Settings], path: str | os.PathLike, **changes: Any
) -> Settings:
  """The settings of a flag file, with some of them changed."""
  values = flags.FlagValues()
  define_flags(settings_type, values)
  values(['', *with_flagfiles([f'--flagfile={path}'])])
  return dataclasses.replace(from_flags(settings_type, values), **changes)


def find_flagfile(
  name: str | os.PathLike, *, beside: pathlib.Path | None = None
) -> pathlib.Path:
  """The file of a path, or else the one of that name in `configs`.

  Args:
    name: of the file, or its path.
    beside: the file that names it, in whose folder it is looked for first.

  Raises:
    SettingsError: there is neither.
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

  Raises:
    SettingsError: a file cannot be read, or names itself.
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
    lines = map(str.strip, path.read_text(encoding='utf-8').splitlines())
  except (OSError, UnicodeDecodeError) as error:
    raise SettingsError(f'{_FLAG}={name} cannot be read: {error}') from error
  words = [line for line in lines if line and not line.startswith(('#', '//'))]
  return _expanded(words, (*within, path))
