"""A command: its flags are read first, then what it needs is imported.

So errors in the flags are printed at once, and so is `--help`.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from experiments.flags.binder import (
  Settings,
  SettingsError,
  define_flags,
  from_flags,
)
from experiments.flags.flag_files import with_flagfiles, with_place
from experiments.flags.help import asks_for_help, help_of


def run(module: str, settings_type: type[Settings]) -> None:
  """Calls `main(settings)` of a module, and ends the process."""
  if asks_for_help(sys.argv[1:]):
    print(help_of(settings_type, sys.modules['__main__'].__doc__ or ''))
    sys.exit()
  define_flags(settings_type, flags.FLAGS, module_name=sys.argv[0])
  try:
    words = with_flagfiles(sys.argv[1:])
  except SettingsError as error:
    sys.exit(f'error: {error}')
  start = functools.partial(_start, module, settings_type, words)
  app.run(start, flags_parser=functools.partial(_parse, words))


def _parse(words: list[str], argv: list[str]) -> list[str]:
  # Flags may follow words without a flag.
  flags.FLAGS.set_gnu_getopt()
  try:
    return flags.FLAGS([argv[0], *words])
  except flags.Error as error:
    sys.exit(f'error: {with_place(str(error), words)}; --help lists the flags')


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
  # Orbax logs every step of every save, and each error that it raises;
  # --verbosity=0 lets it.
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = functools.partial(_report, sys.unraisablehook)
  try:
    settings = from_flags(settings_type, flags.FLAGS)
  except SettingsError as error:
    sys.exit(f'error: {with_place(str(error), words)}')
  # It needs JAX, as most commands do.
  from experiments.run.process import call

  call(importlib.import_module(module).main, settings, words)


def _report(report_any: Callable[[Any], object], event: Any) -> None:
  """A `sys.unraisablehook` that omits what follows from a failed save.

  The first array that cannot be written ends the event loop of Orbax.
  TensorStore then reports each later one as an error of its own, whose
  traceback would hide the message of the first.
  """
  if str(event.exc_value) != 'Event loop is closed':
    report_any(event)
