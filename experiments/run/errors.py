"""The errors of a command: bad input is answered by one line."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax

from adaptssr_jax.errors import CheckpointError, DataError
from adaptssr_jax.training.devices import is_of_lost_process
from experiments.flags.binder import Settings, SettingsError
from experiments.flags.flag_files import with_place
from experiments.run.interruption import Interrupted, listening
from experiments.run.process import prepare_process


def call(
  main: Callable[[Any], Any], settings: Settings, words: Sequence[str] = ()
) -> None:
  """Calls `main(settings)` in a process that is prepared for it.

  Args:
    words: that gave the flags, some of which may be those of a flag file.
  """
  try:
    with listening():
      prepare_process(settings)
      main(settings)
  except Interrupted as notice:
    advice = 'give the same command to'
    if not settings.goes_on:
      _fail(f'error: {notice}: {advice} begin again')
    if not jax.distributed.is_initialized() or jax.process_index() == 0:
      print(f'{notice}: {advice} go on', flush=True)
  except (SettingsError, DataError, CheckpointError) as error:
    _fail(f'error: {with_place(str(error), words)}')
  except BaseException as error:
    if not jax.distributed.is_initialized():
      raise
    text = traceback.format_exc()
    if is_of_lost_process(error):
      # The others end without a word to this one, which finds that out when it
      # sends them something, or receives.
      text = (
        'error: another process of this run has stopped, or cannot be reached: '
        'look at what it says, and give the same command to all processes to '
        f'go on ({str(error).splitlines()[0]})'
      )
    _fail(text)


def _fail(text: str) -> None:
  """Ends the process with a text that says why."""
  if not jax.distributed.is_initialized():
    sys.exit(text)
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  # Else JAX would wait for the others, who may wait for this one. They are
  # notified when it is gone.
  os._exit(1)
