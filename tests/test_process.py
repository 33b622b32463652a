"""What a command sets for its process before it starts."""

import types

import jax
import pytest

from experiments.comparison.options import CompareSettings
from experiments.flags.pretraining import PretrainSettings
from experiments.run import process as run_process
from experiments.run.process import (
  num_cores,
  num_cpu_devices,
  prepare_process,
)


class Config:
  """Stands in for that of JAX, which the tests have set themselves."""

  jax_compilation_cache_dir = None
  jax_num_cpu_devices = None

  def update(self, name, value):
    setattr(self, name, value)


@pytest.fixture
def config(monkeypatch):
  for name in (
    'JAX_NUM_CPU_DEVICES',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
  ):
    monkeypatch.delenv(name, raising=False)
  config = Config()
  stand_in = types.SimpleNamespace(config=config, distributed=jax.distributed)
  monkeypatch.setattr(run_process, 'jax', stand_in)
  return config


def settings(**changes):
  return PretrainSettings(distributed='off', **changes)


def devices_of(config, settings):
  """The number of devices that is set; None leaves it to JAX."""
  prepare_process(settings)
  return config.jax_num_cpu_devices


def test_each_core_is_a_device(config):
  cores = num_cores()
  assert devices_of(config, settings()) == num_cpu_devices(128, cores)
  expected = num_cpu_devices(None, cores)
  assert devices_of(config, CompareSettings()) == expected


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('JAX_NUM_CPU_DEVICES', '4'),
    ('XLA_FLAGS', '--xla_force_host_platform_device_count=5'),
  ],
)
def test_the_flag_comes_first_and_then_what_jax_was_told(
  config, monkeypatch, name, value
):
  monkeypatch.setenv(name, value)
  assert devices_of(config, settings()) is None
  assert devices_of(config, settings(cpu_devices=3)) == 3


@pytest.mark.parametrize('batch_size', [1, 15, 16, 31, 96, 127, 128, 2048])
@pytest.mark.parametrize('cores', [1, 2, 7, 224])
def test_parts_are_equal_and_not_too_small(batch_size, cores):
  parts = num_cpu_devices(batch_size, cores)
  assert 1 <= parts <= cores
  assert batch_size % parts == 0
  if parts > 1:
    assert batch_size // parts >= 16


@pytest.mark.parametrize(
  ('cache', 'folder'),
  [
    ('auto', 'runs/jax_compilation_cache'),
    ('chosen/folder', 'chosen/folder'),
    ('off', None),
    ('', None),
  ],
)
def test_a_command_chooses_a_folder_and_leaves_making_it_to_jax(
  config, tmp_path, monkeypatch, cache, folder
):
  monkeypatch.chdir(tmp_path)
  prepare_process(settings(workdir='runs/one', compilation_cache=cache))
  chosen = str(tmp_path / folder) if folder else None
  assert config.jax_compilation_cache_dir == chosen
  seconds = getattr(config, 'jax_persistent_cache_min_compile_time_secs', None)
  assert seconds == (0.0 if folder else None)
  assert list(tmp_path.iterdir()) == []
