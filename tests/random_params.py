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


def widened(params):
  """As trained: at first the views of all users are hardly told apart.

  The scales of layer norms stay as they are: with them, what rounding does to a
  step is a hundred times as much in the next ones.
  """
  return jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, params)
