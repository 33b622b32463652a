"""The standard streams of a command may be full, closed, or not read."""

import errno
import io
import os
import subprocess
import sys

import pytest

from experiments.run.streams import LastingStream, lost_output
from tests.tiny_runs import ROOT

# A command that prints, writes a file, and prints again.
COMMAND = """
import pathlib, sys
from experiments.run import command
from experiments.flags.small_commands import ReportSettings

def main(settings):
  print('a line', flush=True)
  print('for the log', file=sys.stderr, flush=True)
  pathlib.Path({path!r}).write_text('the result')
  print('\\u00e9' * 100_000, flush=True)

if __name__ == '__main__':
  command.run('__main__', ReportSettings)
"""


def call(path, redirected):
  """Runs the command in a shell; its status, and what it printed."""
  return subprocess.run(
    [
      *('bash', '-c', f'"$@" {redirected}', 'bash', sys.executable, '-c'),
      *(COMMAND.format(path=str(path)), 'runs/one'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ('redirected', 'code', 'told'),
  [
    ('| head -n 1; exit ${PIPESTATUS[0]}', 0, ''),
    ('> /dev/full', 1, 'could not be written (No space left on device)'),
    ('2> /dev/full', 0, ''),
    ('< /dev/null >&- 2>&-', 0, ''),
    ('<&- 2>&-', 0, ''),
  ],
)
def test_a_lost_output_does_not_end_a_command(tmp_path, redirected, code, told):
  done = call(tmp_path / 'file', redirected)
  assert done.returncode == code, done
  # Nothing that is printed goes into a file that was opened.
  assert (tmp_path / 'file').read_text() == 'the result'
  assert told in done.stderr
  assert 'Traceback' not in done.stderr
  assert 'Exception ignored' not in done.stderr


class Full(io.RawIOBase):
  """A file on a full disk."""

  def writable(self):
    return True

  def write(self, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_stream_keeps_the_first_error():
  stream = LastingStream(io.TextIOWrapper(io.BufferedWriter(Full())))
  assert lost_output(stream) == ''
  assert stream.write('text') == 4
  stream.flush()
  assert lost_output(stream) == 'No space left on device'


def test_characters_that_the_encoding_lacks_are_escaped():
  file = io.BytesIO()
  stream = LastingStream(io.TextIOWrapper(file, encoding='ascii'))
  stream.write('caf\u00e9')
  stream.flush()
  assert file.getvalue() == rb'caf\xe9'


def test_a_character_that_paths_cannot_have_is_one_error():
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.pretrain', '--workdir=caf\u00e9'],
    cwd=ROOT,
    env=os.environ
    | {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.startswith("error: '--workdir=caf\\udcc3\\udca9' has char")
  assert done.stderr.endswith(
    'ascii: set PYTHONUTF8=1, or use other characters\n'
  )
