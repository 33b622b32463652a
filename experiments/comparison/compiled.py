"""What JAX has compiled: kept on disk for the next runs, not in memory."""

import gc
import pathlib

import jax


def keep_compiled(folder: pathlib.Path) -> None:
  """Compiles once what many runs have in common, unless JAX already does."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(folder.absolute()))
    # Seconds; what compiles faster is not worth a file.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def forget_compiled() -> None:
  """Frees what JAX keeps of a run: its programs, which are on disk as well."""
  jax.clear_caches()
  gc.collect()
