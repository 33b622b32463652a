"""Settings of a command for its process, seen in separate processes."""

import os
import subprocess
import sys

import pytest

from experiments.run.process import num_cpu_devices
from tests.tiny_runs import ROOT

DEVICES = """
import jax
from experiments.run.process import prepare_process
from experiments.comparison.options import CompareSettings
from experiments.flags.pretraining import PretrainSettings

settings = {settings}
prepare_process(settings)
print(jax.local_device_count())
"""


def devices_of(settings, **variables):
  told = ('JAX_NUM_CPU_DEVICES', 'JAX_COMPILATION_CACHE_DIR')
  env = {name: value for name, value in os.environ.items() if name not in told}
  code = DEVICES.format(settings=settings)
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=env | variables,
    capture_output=True,
    text=True,
    check=True,
  )
  return int(done.stdout)


def test_each_core_is_a_device():
  cores = len(os.sched_getaffinity(0))
  assert devices_of('PretrainSettings()') == num_cpu_devices(128, cores)
  assert devices_of('CompareSettings()') == num_cpu_devices(None, cores)


def test_the_flag_comes_first_and_then_what_jax_was_told():
  four = {'JAX_NUM_CPU_DEVICES': '4'}
  assert devices_of('PretrainSettings()', **four) == 4
  assert devices_of('PretrainSettings(cpu_devices=3)', **four) == 3
  five = {'XLA_FLAGS': '--xla_force_host_platform_device_count=5'}
  assert devices_of('PretrainSettings()', **five) == 5


@pytest.mark.parametrize('batch_size', [1, 15, 16, 31, 96, 127, 128, 2048])
@pytest.mark.parametrize('cores', [1, 2, 7, 224])
def test_parts_are_equal_and_not_too_small(batch_size, cores):
  parts = num_cpu_devices(batch_size, cores)
  assert 1 <= parts <= cores
  assert batch_size % parts == 0
  if parts > 1:
    assert batch_size // parts >= 16
