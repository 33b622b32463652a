"""Random parameters as large as after training; initial ones hardly attend."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def random_params(module, x, seed=0):
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.2, 0.8, x.shape), x.dtype), shapes
  )


def drawn_params(encoder, seed):
  """Those of an encoder; so large that users clearly differ."""
  example = jax.ShapeDtypeStruct((1, 1), np.int32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), example)['params']
  rng = np.random.default_rng(seed)
  params = {}
  for name, leaf in flatten_dict(shapes).items():
    mean, scale = name[-1] == 'scale', 0.4 * (leaf.ndim > 1)
    params[name] = jnp.asarray(rng.normal(mean, scale, leaf.shape), leaf.dtype)
  return unflatten_dict(params)


def widened(params):
  """Larger parameters, as after training: initially all users are similar.

  The scales of layer norms are not changed: otherwise rounding errors of a step
  would grow a hundredfold in the next steps.
  """
  return jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, params)
