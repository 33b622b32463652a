"""What `--help` of a command prints: its flags, in groups."""

import dataclasses
import inspect
import textwrap
from collections.abc import Sequence

from experiments.flags.binder import Settings, help_text
from experiments.flags.flag_files import CONFIGS

# The flags that most runs need, in the order in which they come to mind.
_FIRST = (
  'dataset',
  'events',
  'pretrained',
  'init_from',
  'checkpoints',
  'input',
  'objective',
  'task',
  'tasks',
  'method',
  'methods',
  'mode',
  'workdir',
  'output',
  'num_epochs',
  'batch_size',
  'learning_rate',
  'seed',
  'quiet',
)
_FLAGFILE = (
  'A file of flags, a line each, which may name others: a path, or the name of '
  f'one in {CONFIGS}.'
)
_MOST, _OWN = 'most runs', 'this command'
# The others follow by `Settings.group` of the class that has them first.
_ORDER = (
  _MOST,
  _OWN,
  'objective',
  'encoder',
  'training',
  'data',
  'speed',
  'devices',
  'several processes',
  'plan',
)


def asks_for_help(words: Sequence[str]) -> bool:
  """Whether the words of a command ask what its flags are."""
  return not {'--help', '-help', '-h', '-?', '--helpshort'}.isdisjoint(words)


def help_of(settings_type: type[Settings], about: str) -> str:
  """All flags of a command, in groups."""
  groups = {name: [] for name in _ORDER}
  defaults = settings_type.default_values()
  for field in dataclasses.fields(settings_type):
    groups[group_of(settings_type, field.name)].append(field)
  groups[_MOST].sort(key=lambda field: _FIRST.index(field.name))
  lines = {
    name: [_line(field, defaults.get(field.name)) for field in fields]
    for name, fields in groups.items()
  }
  lines[_MOST].insert(0, _wrapped('flagfile', _FLAGFILE))
  parts = ['\n'.join([f'{name}:', *own]) for name, own in lines.items() if own]
  return '\n\n'.join([about.strip(), *parts])


def group_of(settings_type: type[Settings], name: str) -> str:
  """The title under which `--help` has a flag."""
  if name in _FIRST:
    return _MOST
  first = next(
    base
    for base in reversed(settings_type.__mro__)
    if name in inspect.get_annotations(base)
  )
  return first.group or _OWN


def _line(field: dataclasses.Field, default: str | None) -> str:
  name = f'[no]{field.name}' if isinstance(field.default, bool) else field.name
  suffix = f' (default: {default})' if default else ''
  return _wrapped(name, help_text(field) + suffix)


def _wrapped(name: str, text: str) -> str:
  return textwrap.fill(
    f'--{name}: {text}',
    width=80,
    initial_indent='  ',
    subsequent_indent='    ',
    break_long_words=False,
    break_on_hyphens=False,
  )
