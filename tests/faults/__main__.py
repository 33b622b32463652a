"""Injects faults into training runs; prints the table of docs/reliability.md.

python -m tests.faults --times=20
"""

import argparse
import pathlib
import shutil
import tempfile
import time

from absl import logging

from tests.faults.injuries import (
  INJURIES,
  finish,
  newborn_of,
  open_ward,
  settings_of,
)

# As long as nothing ends here that would not end there: a multiple of an epoch.
HALF = 12


def with_half(ward):
  """Makes half of a run, which victims begin with."""
  begin = time.monotonic()
  finish(settings_of(ward.folder / 'half', ward.data_dir, num_steps=HALF))
  return ward._replace(seconds=time.monotonic() - begin)


def victim_of(ward, name, seed):
  """A copy of the half run, to be hurt."""
  victim = newborn_of(ward, f'{name}_{seed}', seed)
  shutil.copytree(ward.folder / 'half', victim.folder)
  return victim


def main():
  logging.set_verbosity(logging.ERROR)
  parser = argparse.ArgumentParser()
  parser.add_argument('--times', type=int, default=3)
  parser.add_argument('--only', nargs='*', default=[''])
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    ward = with_half(open_ward(folder, str(pathlib.Path(folder) / 'data')))
    print('| fault | times | repeated steps: mean, maximum |\n|---|---|---|')
    for injury in INJURIES:
      if not any(word in injury.__name__ for word in options.only):
        continue
      redone = [
        injury(victim_of(ward, injury.__name__, seed))
        for seed in range(options.times)
      ]
      mean = sum(redone) / len(redone)
      name = injury.__name__.replace('_', ' ')
      print(
        f'| {name} | {len(redone)} | {mean:.1f}, {max(redone)} |', flush=True
      )


if __name__ == '__main__':
  main()
