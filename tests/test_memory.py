"""Freed memory is kept: the next block of its size costs no page faults."""

from tiny_runs import last_line_of

FAULTS = """
import resource, numpy as np
from experiments.memory import keep_freed_memory
{call}
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.empty(2**26, np.uint8).fill(1)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_a_block_freed_and_taken_again_is_not_mapped_again():
  mapped = int(last_line_of(FAULTS.format(call='')))
  kept = int(last_line_of(FAULTS.format(call='keep_freed_memory()')))
  # A fault for each page of 4 KiB, or of 2 MiB where those are used.
  assert mapped >= 32
  assert kept < mapped / 10
