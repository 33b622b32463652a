"""Settings of a command: a frozen dataclass whose fields are absl flags."""

import csv
import dataclasses
import difflib
import importlib
import io
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from absl import flags

from experiments.flags.flag_files import SettingsError, with_flagfiles


class Rule(NamedTuple):
  """What `--help` says of a flag, and the values that it may have."""

  help: str  # with the unit of the value
  low: float | None = None  # the smallest allowed value
  above: float | None = None  # a value that must be exceeded
  high: float | None = None  # the largest allowed value
  choices: tuple[str, ...] = ()  # allowed words; a tuple may hold several
  # Whether a tuple is given by one flag per value, which may then contain
  # commas, instead of by one flag for all values.
  repeated: bool = False
  may_repeat: bool = False  # whether a tuple may have the same value twice
  mutable_on_resume: bool = False  # whether a resumed run may have another


def flag(default: Any, help: str, **rule: Any) -> Any:
  """A dataclass field that is a flag, with the fields of its `Rule`."""
  metadata = Rule(help, **rule)._asdict()
  return dataclasses.field(default=default, metadata=metadata)


def mutable_flag(default: Any, help: str, **rule: Any) -> Any:
  """A flag whose value may change when a run is resumed."""
  return flag(default, help, mutable_on_resume=True, **rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Base class of the settings of all commands; checks every value.

  Attributes of a class:
    group: the title under which `--help` lists the flags of the class, if
      several commands share it.
    takes_words: the flag that collects arguments without `--NAME=`, if any.
    is_resumable: whether a stopped command resumes when it is given again. A
      command that writes only at its end starts again.
  """

  group: ClassVar[str] = ''
  takes_words: ClassVar[str] = ''
  is_resumable: ClassVar[bool] = True

  def __init_subclass__(cls, *, group: str = '') -> None:
    cls.group = group

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name))

  def without_effect(self) -> dict[str, str]:
    """Flags that have no effect with the values of the others, and why."""
    return {}

  def flag_values(self, *, without: Collection[str] = ()) -> dict[str, str]:
    """The values of flags as text, by name; without flags that are None.

    Args:
      without: the names of flags to leave out.
    """
    fields = [f for f in dataclasses.fields(self) if f.name not in without]
    return _texts({field: getattr(self, field.name) for field in fields})

  @classmethod
  def default_values(cls) -> dict[str, str]:
    """The defaults of flags as text, by name; without those that are None."""
    return _texts({field: field.default for field in dataclasses.fields(cls)})

  def mutable_names(self) -> set[str]:
    """The flags whose values may differ when a run is resumed."""
    return {
      field.name
      for field in dataclasses.fields(self)
      if field.metadata['mutable_on_resume']
    }

  def with_missing(self, defaults: Mapping[str, Any]) -> Self:
    """The settings, with these values for flags that are None."""
    missing = {
      name: value
      for name, value in defaults.items()
      if getattr(self, name) is None
    }
    return dataclasses.replace(self, **missing)

  def to_flagfile(self) -> str:
    """The settings as a file for `--flagfile`."""
    return ''.join(
      f'--{name}={line}\n'
      for name, text in self.flag_values().items()
      # A repeated flag has a line for each value.
      for line in text.split('\n')
    )


def _check(field: dataclasses.Field, value: Any) -> None:
  if value is None:
    return
  rule = field.metadata
  if _plain_type(field.type) is tuple and isinstance(value, str):
    raise SettingsError(
      f'--{field.name} takes several words: give a tuple of them, not {value!r}'
    )
  words = value if isinstance(value, tuple) else (value,)
  if isinstance(value, tuple) and not all(isinstance(w, str) for w in value):
    raise SettingsError(
      f'--{field.name} takes strings: {tuple(map(str, value))}, not {value}'
    )
  for word in words:
    if words.count(word) > 1 and not rule['may_repeat']:
      raise SettingsError(f'--{field.name} has {word!r} twice: give it once')
    # A flag file has one line per flag.
    if isinstance(word, str) and len(f'{word}.'.splitlines()) > 1:
      raise SettingsError(f'--{field.name} must be one line, not {word!r}')
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
    # Written so that nan fails every bound.
    if rule[bound] is not None and not holds(value, rule[bound]):
      raise SettingsError(
        f'--{field.name} must be {words} {rule[bound]}, not {value}'
      )
  if isinstance(value, float) and not math.isfinite(value):
    raise SettingsError(f'--{field.name} must be finite, not {value}')


_BOUNDS = (
  ('low', 'at least', operator.ge),
  ('above', 'above', operator.gt),
  ('high', 'at most', operator.le),
)


def define_flags(
  settings_type: type[Settings],
  values: flags.FlagValues,
  module_name: str | None = None,
) -> None:
  """Defines a flag for every field of a settings class."""
  for field in dataclasses.fields(settings_type):
    define = _DEFINE[_plain_type(field.type)]
    default = field.default
    if field.metadata['repeated']:
      define = flags.DEFINE_multi_string
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
  """The help of a flag, with its choices."""
  text = field.metadata['help']
  if field.metadata['choices']:
    text += f' One of: {", ".join(field.metadata["choices"])}.'
  return text


def _text(field: dataclasses.Field, value: Any) -> str | None:
  if not isinstance(value, tuple):
    return None if value is None else str(value)
  if field.metadata['repeated']:
    return '\n'.join(value)
  # absl reads such flags as CSV: a word with a comma is quoted.
  text = io.StringIO()
  csv.writer(text, lineterminator='').writerow(value)
  return text.getvalue()


def _texts(values: Mapping[dataclasses.Field, Any]) -> dict[str, str]:
  texts = {field.name: _text(field, value) for field, value in values.items()}
  return {name: text for name, text in texts.items() if text is not None}


_DEFINE = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_bool,
  tuple: flags.DEFINE_list,
}


def _plain_type(hint: Any) -> type:
  """`int` for `int | None`, `tuple` for `tuple[str, ...]`."""
  if isinstance(hint, types.UnionType):
    hint = typing.get_args(hint)[0]
  return typing.get_origin(hint) or hint


def from_flags(
  settings_type: type[Settings], values: flags.FlagValues
) -> Settings:
  """The settings of parsed flags."""
  return settings_type(
    **{
      field.name: _parsed_value(values[field.name].value)
      for field in dataclasses.fields(settings_type)
    }
  )


def _parsed_value(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(map(_parsed_value, filter(None, value)))
  # A shell does not expand ~ in --workdir=~/runs, which would make a folder ~.
  is_home = isinstance(value, str) and value.startswith('~/')
  return os.path.expanduser(value) if is_home else value


def from_flagfile(
  settings_type: type[Settings], path: str | os.PathLike, **changes: Any
) -> Settings:
  """The settings of a flag file, with `changes` made to them."""
  words = with_flagfiles([f'--flagfile={path}'])
  return settings_type(**given_values(settings_type, words) | changes)


def given_values(
  settings_type: type[Settings], words: Sequence[str]
) -> dict[str, Any]:
  """The values of the flags that the words of a command line set."""
  values = flags.FlagValues()
  define_flags(settings_type, values)
  try:
    left = values(['', *words])[1:]
    settings = from_flags(settings_type, values)
  except flags.Error as error:
    raise SettingsError(str(error)) from error
  if left:
    raise SettingsError(f'{left[0]!r} is not a flag: write --NAME=VALUE')
  return {
    field.name: getattr(settings, field.name)
    for field in dataclasses.fields(settings)
    if values[field.name].present
  }


def function_of(flag: str, name: str) -> Callable:
  """Imports the function that a flag names as MODULE:FUNCTION."""
  module, _, function = name.partition(':')
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise SettingsError(
      f'--{flag}={name}: {error}; give MODULE:FUNCTION, a module that Python '
      'can import from this folder and a function in it'
    ) from error


def unknown(word: str, known: Collection[str]) -> str:
  """A message that a word is unknown, with the nearest and all known words."""
  near = difflib.get_close_matches(word, known, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else '.'
  return f'no {word!r}{hint} There are: {", ".join(known)}'
