"""Untrained encoders with random parameters, which need no compilation."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def drawn_params(encoder, seed):
  """Random parameters, not compiled; so large that users clearly differ."""
  example = jax.ShapeDtypeStruct((1, 1), np.int32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), example)['params']
  rng = np.random.default_rng(seed)
  params = {}
  for name, leaf in flatten_dict(shapes).items():
    mean, scale = name[-1] == 'scale', 0.4 * (leaf.ndim > 1)
    params[name] = jnp.asarray(rng.normal(mean, scale, leaf.shape), leaf.dtype)
  return unflatten_dict(params)
