"""Eight simulated devices, strict shapes, and checked annotations."""

import atexit
import gc
import os
import shutil
import tempfile

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiling takes most of the time of most tests: do it fast, and once.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _compiled = tempfile.mkdtemp(prefix='adaptssr_jax_compiled.')
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
  os.environ |= {
    'JAX_COMPILATION_CACHE_DIR': _compiled,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }

import jaxtyping

jaxtyping.install_import_hook('adaptssr_jax', 'beartype.beartype')

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
import pytest  # noqa: E402


@pytest.fixture(scope='module', autouse=True)
def compiled_is_forgotten():
  """What all modules compile needs more memory maps than a process may have."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """One folder of prepared data sets for all runs."""
  return str(tmp_path_factory.mktemp('data'))
