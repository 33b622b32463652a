"""A command: flags in, `main(settings)` called, bad input told in one line."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging

from adaptssr_jax.errors import CheckpointError, DataError
from adaptssr_jax.training.devices import is_of_lost_process
from experiments.flags.binder import (
  Settings,
  SettingsError,
  define_flags,
  from_flags,
)
from experiments.run.interruption import Interrupted, listening
from experiments.run.process import prepare_process


def run(main: Callable[[Any], Any], settings_type: type[Settings]) -> None:
  """Parses the flags and calls `main(settings)`; bad input ends in one line."""
  define_flags(settings_type, flags.FLAGS, module_name=sys.argv[0])

  def start(argv: list[str]) -> None:
    if argv[1:]:
      sys.exit(
        f'error: unexpected argument {argv[1]!r}: flags are --NAME=VALUE, and '
        f'a file of flags is --flagfile={argv[1]}'
      )
    # Orbax tells every step of every save, and each error that it raises too;
    # --verbosity=0 lets it.
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.FATAL)
    try:
      with listening():
        settings = from_flags(settings_type, flags.FLAGS)
        prepare_process(settings)
        main(settings)
    except Interrupted as notice:
      if not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(notice, flush=True)
    except (SettingsError, DataError, CheckpointError) as error:
      _fail(f'error: {error}')
    except BaseException as error:
      if not jax.distributed.is_initialized():
        raise
      _fail(_lost(error) or traceback.format_exc())

  app.run(start)


def _lost(error: BaseException) -> str:
  """The line of an error that other processes are to blame for, else nothing.

  They end without a word to this one, which finds that out when it sends them
  something, or receives.
  """
  if not is_of_lost_process(error):
    return ''
  reason, *_ = str(error).splitlines()
  return (
    'error: another process of this run has stopped, or cannot be reached: '
    'look at what it says, and give the same command to all processes to go on '
    f'({reason})'
  )


def _fail(text: str) -> None:
  """Ends the process with a text that says why."""
  if not jax.distributed.is_initialized():
    sys.exit(text)
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  # Else JAX would wait for the others, who may wait for this one. They are told
  # when it is gone.
  os._exit(1)
