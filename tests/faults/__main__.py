"""Injects faults into training runs; prints the table of docs/reliability.md.

python -m tests.faults --times=20
"""

import argparse
import pathlib
import shutil
import tempfile
import time

from absl import logging

from tests.faults.inject import (
  FAULTS,
  finish,
  make_environment,
  new_run,
  settings_of,
)

# A multiple of an epoch, since epochs end with validation.
HALF = 12


def with_half(env):
  """Makes the half-done run that the others are copies of."""
  begin = time.monotonic()
  finish(settings_of(env.folder / 'half', env.data_dir, num_steps=HALF))
  return env._replace(seconds=time.monotonic() - begin)


def half_done_run(env, name, seed):
  """A copy of the half-done run."""
  run = new_run(env, f'{name}_{seed}', seed)
  shutil.copytree(env.folder / 'half', run.folder)
  return run


def main():
  logging.set_verbosity(logging.ERROR)
  parser = argparse.ArgumentParser()
  parser.add_argument('--times', type=int, default=3)
  parser.add_argument('--only', nargs='*', default=[''])
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    env = with_half(
      make_environment(folder, str(pathlib.Path(folder) / 'data'))
    )
    print('| fault | times | repeated steps: mean, maximum |\n|---|---|---|')
    for fault in FAULTS:
      if not any(word in fault.__name__ for word in options.only):
        continue
      redone = [
        fault(half_done_run(env, fault.__name__, seed))
        for seed in range(options.times)
      ]
      mean = sum(redone) / len(redone)
      name = fault.__name__.replace('_', ' ')
      print(
        f'| {name} | {len(redone)} | {mean:.1f}, {max(redone)} |', flush=True
      )


if __name__ == '__main__':
  main()
