"""SIGTERM and Ctrl-C: training ends between two steps, and saves.

A machine that may be taken away gives notice by SIGTERM.
"""

import contextlib
import os
import signal
import types
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(BaseException):
  """Raised when a signal asks the process to end; the message names it."""


# The name of the signal that was received, and whether somebody asks for it.
_SIGNAL = types.SimpleNamespace(name=None, is_polled=False)


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Handles SIGTERM and SIGINT: they raise `Interrupted`, or are deferred.

  Enter it before `jax.distributed.initialize`, by which JAX installs its own
  SIGTERM handler, to notify all processes. With several processes none may stop
  alone: SIGTERM is then only handled during training, and Ctrl-C at other times
  ends all of them.
  """
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(number, _on_signal) for number in numbers]
  try:
    yield
  finally:
    _SIGNAL.name = None
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Lets a signal wait until `asked_to_stop` is asked, or until the end."""
  _SIGNAL.is_polled = True
  try:
    yield
  finally:
    _SIGNAL.is_polled = False
  # Others may have come to the end without a notice.
  if _SIGNAL.name and not jax.distributed.is_initialized():
    raise _interrupted()


def asked_to_stop(step: int) -> bool:
  """Whether to stop after this step, in all processes alike; ask at each."""
  if jax.distributed.is_initialized():
    return multihost_utils.reached_preemption_sync_point(step)
  return _SIGNAL.name is not None


def _interrupted() -> Interrupted:
  return Interrupted(f'stopped by {_SIGNAL.name}')


def _on_signal(number: int, frame: FrameType | None) -> None:
  del frame
  name, together = signal.Signals(number).name, jax.distributed.is_initialized()
  is_unpolled = together and not _SIGNAL.is_polled
  if name == 'SIGINT' and (_SIGNAL.name == name or is_unpolled):
    # Who presses Ctrl-C again does not want to wait.
    raise KeyboardInterrupt
  # Kept, since what is raised now and then meets code that swallows it.
  _SIGNAL.name = name
  if not _SIGNAL.is_polled:
    raise _interrupted()
  if together:
    # No process may stop alone: this is how JAX notifies the others.
    os.kill(os.getpid(), signal.SIGTERM)
  # Not printed: what prints may be what was interrupted.
  os.write(2, f'\n{name}: saves and stops after this step\n'.encode())
