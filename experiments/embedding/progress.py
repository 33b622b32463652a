"""How far a command is with its users."""

import sys

import tqdm

from experiments.run.process import is_quiet


def progress(total: int) -> tqdm.tqdm:
  """A line that tells how many users are done, unless --quiet."""
  return tqdm.tqdm(
    total=total,
    unit=' users',
    disable=is_quiet(),
    # A log shall not be flooded.
    mininterval=0.5 if sys.stderr.isatty() else 10.0,
  )
