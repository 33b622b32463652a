"""Time and memory of preparing and reading data, in fresh interpreters."""

import pytest

from tests.tiny_runs import PEAK_MIB, last_line_of


def test_padding_reads_only_the_rows_it_needs(tmp_path):
  # 50 batches touch less than a tenth of 256 MB of values.
  code = f"""{PEAK_MIB}
import numpy as np
from adaptssr_jax.data.ragged import Ragged
values = np.memmap({str(tmp_path / 'v')!r}, np.int32, 'w+', shape=64_000_000)
rows = Ragged.from_lengths(values, np.full(640_000, 100))
before = peak_mib()
for start in range(50):
  rows.padded(start * 8_000 + np.arange(256), 100)
print(peak_mib() - before)
"""
  assert float(last_line_of(code)) < 64


def test_preparing_imports_no_tensorflow(tmp_path):
  modules = last_line_of(f"""
import sys
import tensorflow_datasets as tfds
import adaptssr_jax.data
data = adaptssr_jax.data.load(
  tfds.builder('synthetic_users/tiny_gender', data_dir={str(tmp_path)!r})
)
data.splits['train'].items.padded(data.splits['train'].label, 5)
print(sorted({{name.split('.')[0] for name in sys.modules}}))
""")
  assert 'tensorflow_datasets' in modules
  for heavy in ("'tensorflow'", "'apache_beam'", "'torch'"):
    assert heavy not in modules


@pytest.mark.slow
def test_100_000_users_are_made_and_written_in_two_minutes(tmp_path):
  seconds, mebibytes = last_line_of(f"""{PEAK_MIB}
import time
import tensorflow_datasets as tfds
import adaptssr_jax.data
start = time.monotonic()
adaptssr_jax.data.load(
  tfds.builder('synthetic_users/medium_age', data_dir={str(tmp_path)!r})
)
print(time.monotonic() - start, peak_mib())
""").split()
  # Takes half a minute on an idle machine; machines differ by a factor of two.
  assert float(seconds) < 120
  # `ttl` has 16 times as many users, which must fit into 16 GiB.
  assert float(mebibytes) < 1024
