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
  """Somebody asked the process to end; the message says where it did."""


# The signal that was received, and whether the process asks for it.
_NOTICE = types.SimpleNamespace(signal=None, is_asked_for=False)


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Lets SIGTERM and SIGINT raise `Interrupted`, or wait where that is safer.

  Call it before `jax.distributed.initialize`, with which JAX takes SIGTERM: to
  notify all processes. Of several processes none may stop alone, so that
  there only training heeds SIGTERM, and Ctrl-C elsewhere ends them all.
  """
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(number, _on_signal) for number in numbers]
  try:
    yield
  finally:
    _NOTICE.signal = None
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Lets a signal wait until `asked_to_stop` is asked, or until the end."""
  _NOTICE.is_asked_for = True
  try:
    yield
  finally:
    _NOTICE.is_asked_for = False
  # Others may have come to the end without a notice.
  if _NOTICE.signal and not jax.distributed.is_initialized():
    raise _interrupted()


def asked_to_stop(step: int) -> bool:
  """Whether to stop after this step, in all processes alike; ask at each."""
  if jax.distributed.is_initialized():
    return multihost_utils.reached_preemption_sync_point(step)
  return _NOTICE.signal is not None


def _interrupted() -> Interrupted:
  return Interrupted(f'stopped by {_NOTICE.signal}')


def _on_signal(number: int, frame: FrameType | None) -> None:
  del frame
  name, together = signal.Signals(number).name, jax.distributed.is_initialized()
  is_alone_told = together and not _NOTICE.is_asked_for
  if name == 'SIGINT' and (_NOTICE.signal == name or is_alone_told):
    # Who presses Ctrl-C again does not want to wait.
    raise KeyboardInterrupt
  # Kept, since what is raised now and then meets code that swallows it.
  _NOTICE.signal = name
  if not _NOTICE.is_asked_for:
    raise _interrupted()
  if together:
    # No process may stop alone: this is how JAX notifies the others.
    os.kill(os.getpid(), signal.SIGTERM)
  # Not printed: what prints may be what was interrupted.
  os.write(2, f'\n{name}: saves and stops after this step\n'.encode())
