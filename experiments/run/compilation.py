"""What JAX has compiled: kept on disk for the next runs, not in memory."""

import gc
import os
import pathlib

import jax

# Beside the folder of the run, where a user may keep other things.
_FOLDER = 'jax_compilation_cache'


def keep_compiled(cache: str, *, workdir: str | os.PathLike) -> None:
  """Lets later processes find what this one compiles.

  Call it before anything is compiled. It does nothing where JAX has a folder
  already, as by the variable JAX_COMPILATION_CACHE_DIR. JAX makes the folder
  when it compiles, compiles anew what it cannot read there, and never removes
  anything; runs may share it at the same time.

  Args:
    cache: 'auto', a folder beside the workdir; 'off'; or the folder.
    workdir: of the run.
  """
  if cache == 'off' or jax.config.jax_compilation_cache_dir:
    return
  beside = pathlib.Path(workdir).absolute().parent / _FOLDER
  folder = beside if cache == 'auto' else pathlib.Path(cache).absolute()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  # Small programs too: a start has a dozen, 0.2 s together. What took long is
  # no measure either, since that depends on what else the machine does.
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def forget_compiled() -> None:
  """Frees what JAX keeps of a run: its programs, which are on disk as well."""
  jax.clear_caches()
  gc.collect()
