"""SIGTERM, SIGHUP and Ctrl-C: training stops between two steps, and saves.

A preemptible machine sends SIGTERM before it is taken away, and a terminal that
is closed sends SIGHUP.
"""

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(BaseException):
  """Raised when a signal asks the process to end; the message names it."""


# The name of the signal that was received, and whether training polls it.
_SIGNAL = types.SimpleNamespace(name=None, is_polled=False)


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
  """Handles SIGTERM, SIGHUP and SIGINT: `Interrupted` is raised, or deferred.

  Enter it before `jax.distributed.initialize`, which installs JAX's own SIGTERM
  handler, to notify all processes. With several processes, none may stop alone:
  SIGTERM is then handled during training only, and Ctrl-C or SIGHUP at other
  times ends all of them. SIGHUP stays ignored under `nohup`.
  """
  numbers = _numbers()
  before = [signal.signal(number, _on_signal) for number in numbers]
  try:
    yield
  finally:
    _SIGNAL.name = None
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


def _numbers() -> list[signal.Signals]:
  """The signals that are handled."""
  numbers = [signal.SIGTERM, signal.SIGINT]
  # Windows has no such signal.
  hangup = getattr(signal, 'SIGHUP', None)
  if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
    numbers.append(hangup)
  return numbers


def ignore_signals() -> None:
  """Ignores further signals in a process that has done its work and ends.

  A second SIGTERM would otherwise replace the exit status of the first. With
  several processes it does nothing, since the end of one waits for the others.
  """
  if jax.distributed.is_initialized():
    return
  for number in _numbers():
    signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
  """Defers signals until `asked_to_stop` is called, or until exit."""
  _SIGNAL.is_polled = True
  try:
    yield
  finally:
    _SIGNAL.is_polled = False
  # With several processes, the others may have finished without a signal.
  if _SIGNAL.name and not jax.distributed.is_initialized():
    raise Interrupted(f'stopped by {_SIGNAL.name}')


def asked_to_stop(step: int) -> bool:
  """Whether to stop after this step, the same in all processes.

  Call it at every step.
  """
  if jax.distributed.is_initialized():
    return multihost_utils.reached_preemption_sync_point(step)
  return _SIGNAL.name is not None


def _on_signal(number: int, frame: FrameType | None) -> None:
  del frame
  name, together = signal.Signals(number).name, jax.distributed.is_initialized()
  is_unpolled = together and not _SIGNAL.is_polled
  is_again = name == 'SIGINT' and _SIGNAL.name == name
  if is_again or (name != 'SIGTERM' and is_unpolled):
    # A second Ctrl-C stops at once.
    raise KeyboardInterrupt(name)
  if isinstance(sys.exception(), Interrupted):
    # The first signal is ending the command, and its cleanup is not disturbed.
    return
  # Stored, because code that is running now may swallow the exception.
  _SIGNAL.name = name
  if not _SIGNAL.is_polled:
    raise Interrupted(f'stopped by {_SIGNAL.name}')
  if together:
    # No process may stop alone; SIGTERM makes JAX notify the others.
    os.kill(os.getpid(), signal.SIGTERM)
  # By os.write, since the signal may have interrupted a print. A terminal that
  # was closed cannot be written.
  with contextlib.suppress(OSError):
    os.write(2, f'\n{name}: saving and stopping after this step\n'.encode())
