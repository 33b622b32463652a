"""Parameters as after training: the initial ones hardly attend."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(module, x, seed=0):
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.2, 0.8, x.shape), x.dtype), shapes
  )
