"""Runs a command: reads its flags first, and only then imports JAX and data.

So `--help` and errors in the flags are printed at once.
"""

import dataclasses
import functools
import importlib
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments.flags.binder import (
  Settings,
  SettingsError,
  define_flags,
  from_flags,
  help_text,
)
from experiments.flags.flag_files import CONFIGS, with_flagfiles, with_location
from experiments.run.streams import lost_output, make_streams_last

# The flags that most runs need, in the order in which a user thinks of them.
_FIRST = (
  *('dataset', 'events', 'pretrained', 'init_from', 'checkpoints', 'input'),
  *('objective', 'task', 'tasks', 'method', 'methods', 'mode', 'workdir'),
  *('output', 'num_epochs', 'batch_size', 'learning_rate', 'seed', 'quiet'),
)
_FLAGFILE = (
  'A file with one flag per line, which may include other such files: a path, '
  f'or the name of a file in {CONFIGS}.'
)
_HELP = {'--help', '-help', '-h', '-?', '--helpshort'}
_MOST, _OWN = 'most runs', 'this command'
# The other flags follow, by the `Settings.group` of the class that defines them
# first.
_ORDER = (
  *(_MOST, _OWN, 'objective', 'encoder', 'training', 'data', 'speed'),
  *('devices', 'several processes', 'plan'),
)


def run(module: str, settings_type: type[Settings]) -> None:
  """Calls `main(settings)` of a module with the settings of the flags."""
  make_streams_last()
  if not _HELP.isdisjoint(sys.argv[1:]):
    print(help_of(settings_type, sys.modules['__main__'].__doc__ or ''))
    sys.exit()
  define_flags(settings_type, flags.FLAGS, module_name=sys.argv[0])
  try:
    words = with_flagfiles(sys.argv[1:])
    _check_encoding(words)
  except SettingsError as error:
    sys.exit(f'error: {error}')
  start = functools.partial(_start, module, settings_type, words)
  app.run(start, flags_parser=functools.partial(_parse, words))


def _check_encoding(words: Sequence[str]) -> None:
  """Raises `SettingsError` for characters that cannot be in a path."""
  for word in words:
    try:
      word.encode()
      os.fsencode(word)
    except UnicodeEncodeError as error:
      raise SettingsError(
        f'{word!a} has characters outside of the encoding of this '
        f'process, {sys.getfilesystemencoding()}: set PYTHONUTF8=1, or use '
        'other characters'
      ) from error


def _parse(words: list[str], argv: list[str]) -> list[str]:
  # Allows flags after arguments without a flag.
  flags.FLAGS.set_gnu_getopt()
  try:
    return flags.FLAGS([argv[0], *words])
  except flags.Error as error:
    sys.exit(
      f'error: {with_location(str(error), words)}; --help lists the flags'
    )


def _start(
  module: str,
  settings_type: type[Settings],
  words: list[str],
  argv: list[str],
) -> None:
  name = settings_type.takes_words
  if argv[1:] and not name:
    sys.exit(
      f'error: unexpected argument {argv[1]!r}: flags are --NAME=VALUE, and '
      f'a file of flags is --flagfile={argv[1]}'
    )
  if argv[1:]:
    flags.FLAGS[name].value = [*flags.FLAGS[name].value, *argv[1:]]
  # Orbax logs every step of every save, and each error that it raises.
  # --verbosity=0 shows these logs.
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = functools.partial(_report, sys.unraisablehook)
  try:
    settings = from_flags(settings_type, flags.FLAGS)
    unused = refuse_unused(settings, words)
  except SettingsError as error:
    sys.exit(f'error: {with_location(str(error), words)}')
  if unused and not getattr(settings, 'quiet', False):
    print(f'without effect: {", ".join(unused)}', flush=True)
  # Imported here because it imports JAX.
  from experiments.run.interruption import ignore_signals
  from experiments.run.process import call, end_at_once

  is_stopped = call(importlib.import_module(module).main, settings, words)
  ignore_signals()
  if reason := lost_output(sys.stdout):
    sys.exit(
      f'error: the standard output could not be written ({reason}); the '
      'command did everything else'
    )
  if is_stopped:
    end_at_once(0)


def refuse_unused(settings: Settings, words: Sequence[str]) -> list[str]:
  """Refuses a flag of the command line that has no effect with the others.

  Returns:
    Such flags of flag files, as `--NAME`. They are not refused, since one file
    may serve several objectives and modes.
  """
  found = []
  for name, why in settings.without_effect().items():
    if getattr(settings, name) == getattr(type(settings), name):
      continue
    message = f'--{name} {why}: leave it out'
    if with_location(message, words) == message:
      raise SettingsError(message)
    found.append(f'--{name}')
  return found


def _report(report_any: Callable[[Any], object], event: Any) -> None:
  """A `sys.unraisablehook` that omits what follows from a failed checkpoint.

  The first array that cannot be read or written ends the event loop of Orbax.
  TensorStore then reports each later array as an error of its own, and so does
  each coroutine of Orbax that is left. Their tracebacks would hide the message
  about the first array.
  """
  is_closed = str(event.exc_value) == 'Event loop is closed'
  if not is_closed and not inspect.iscoroutine(event.object):
    report_any(event)


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
