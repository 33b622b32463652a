"""Memory of the process, which XLA asks for anew at every step."""

import ctypes
import sys

# The options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
  """Lets the process keep what it frees, rather than give it back and ask.

  A step on CPU takes one buffer of hundreds of MB. glibc maps a block of that
  size and unmaps it when it is freed, so that every step pays for all its page
  faults again: a third of its CPU time. Call it before JAX allocates anything;
  it does nothing where the C library is another one.
  """
  if not sys.platform.startswith('linux'):
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return
  # One heap, from which large blocks are taken too, and which is not trimmed.
  mallopt(_M_ARENA_MAX, 1)
  mallopt(_M_MMAP_MAX, 0)
  mallopt(_M_TRIM_THRESHOLD, -1)
