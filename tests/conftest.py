"""Eight simulated devices, strict shapes, and checked annotations."""

import os

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jaxtyping

jaxtyping.install_import_hook('adaptssr_jax', 'beartype.beartype')

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
