"""Eight simulated devices, strict rank promotion, checked shape annotations."""

import atexit
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Compiling takes most of the time of most tests: do it fast, and once.
_FAST = {
  'xla_backend_optimization_level': '0',
  # Half of what is left: what they emit is more to compile.
  'xla_cpu_use_fusion_emitters': 'false',
  'xla_cpu_parallel_codegen_split_count': '1',
}
# What TEST_ISA may be: CPUs differ in how wide their vectors are, so that sums
# are rounded in another order.
_ISAS = ('SSE4_2', 'AVX', 'AVX2', 'AVX512')


def _known(flags):
  """Those that XLA knows: it ends a process for any other, and names it."""
  environment = {'XLA_FLAGS': ' '.join(flags), 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', 'import jax; jax.devices()'],
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  return [flag for flag in flags if flag not in done.stderr]


def _xla_flags():
  """Those that are given, else the fast ones; and the instructions to use."""
  flags = os.environ.get('XLA_FLAGS')
  if flags is None:
    fast = [f'--{name}={value}' for name, value in _FAST.items()]
    flags = ' '.join(_known(fast))
  # Not left to processes that inherit the flags, which hold it already.
  isa = os.environ.pop('TEST_ISA', None)
  if isa is None:
    return flags
  # XLA would ignore any other, and take all instructions of this CPU.
  if isa not in _ISAS:
    raise ValueError(f'TEST_ISA must be one of {", ".join(_ISAS)}, not {isa!r}')
  return f'{flags} --xla_cpu_max_isa={isa}'


os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = _xla_flags()
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _compiled = tempfile.mkdtemp(prefix='adaptssr_jax_compiled.')
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
  os.environ |= {
    'JAX_COMPILATION_CACHE_DIR': _compiled,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook('adaptssr_jax', 'beartype.beartype')

# Programs are made of many small objects that live long: looking through them
# for garbage after each 700 new ones takes a tenth of the time.
gc.set_threshold(20_000)

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
import pytest  # noqa: E402


def pytest_report_header():
  return f'XLA_FLAGS: {os.environ["XLA_FLAGS"]}'


@pytest.fixture(scope='module', autouse=True)
def compiled_is_forgotten():
  """What all modules compile needs more memory maps than a process may have."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  # A process may have 65,530 maps; with 10,000 its programs take some 3 GB.
  # Linux alone tells.
  if not maps.exists() or maps.read_bytes().count(b'\n') > 10_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """One folder of prepared data sets for all runs."""
  return str(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory, data_dir):
  """The settings of a run of nine steps in three epochs, only to be read."""
  # Imported after what is checked.
  from experiments import pretrain
  from tests.tiny_runs import pretrain_settings

  folder = tmp_path_factory.mktemp('pretrained') / 'run'
  settings = pretrain_settings(folder, data_dir)
  pretrain.main(settings)
  return settings
