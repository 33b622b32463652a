"""Runs commands in several processes that train together on this machine."""

import os
import re
import socket
import subprocess
import sys

from tests.tiny_runs import ROOT

# What the collectives of the CPU say of themselves, and what is left of two
# such lines if they are written at once: the number of peers at their end. And
# what XLA says where a program compiles for two minutes, in a box of stars.
NOISE = re.compile(
  r'\[Gloo\]|\d*$|.*slow_operation_alarm|\*+$|\[Compiling module|Very slow'
)


def start_all(module, flags, *, processes, devices, file_size=None):
  """Starts a command in processes that work together.

  Args:
    module: of `experiments`.
    flags: of the command.
    processes: how many.
    devices: of each.
    file_size: of the first, as of `start`.
  """
  with socket.create_server(('localhost', 0)) as server:
    port = server.getsockname()[1]
  together = [f'--coordinator=localhost:{port}', f'--num_processes={processes}']
  return [
    start(
      module,
      [*flags, *together, f'--process_id={i}'] if processes > 1 else flags,
      devices=devices,
      file_size=None if i else file_size,
    )
    for i in range(processes)
  ]


def start(module, flags, *, devices, file_size=None):
  """Starts a command on simulated devices.

  Args:
    module: of `experiments`.
    flags: of the command.
    devices: of the process.
    file_size: KiB after which a file cannot grow, as if the disk were full.
  """
  limit = 'unlimited' if file_size is None else file_size
  return subprocess.Popen(
    [
      *('bash', '-c', f'ulimit -f {limit}; exec "$@"', 'bash'),
      *(sys.executable, '-m', f'experiments.{module}'),
      *flags,
    ],
    cwd=ROOT,
    env=os.environ | {'TQDM_DISABLE': '1', 'JAX_NUM_CPU_DEVICES': str(devices)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def end(process, code=0, *, seconds=200):
  """Waits for the end of a process, which must be this; what it printed."""
  output, _ = process.communicate(timeout=seconds)
  assert process.returncode == code, (process.returncode, output)
  assert 'Traceback' not in output, output
  lines = output.splitlines(keepends=True)
  return ''.join(line for line in lines if not NOISE.match(line))
