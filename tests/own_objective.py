"""An objective of a user of the library, trained by a test."""

import jax.numpy as jnp

from adaptssr_jax.objectives.users import mean_loss, user_keys


def length_objective(params, batch, key, *, encoding):
  """The vector of a user predicts how many behaviours the user has."""
  keys = user_keys(key, batch['example_id'])
  users = encoding(params, batch['items'], keys)
  wanted = jnp.log1p(jnp.sum(batch['items'] != 0, axis=1))
  losses = jnp.square(users @ params['head']['weight'] - wanted)
  return mean_loss(losses, batch['where'], axis_name=encoding.axis_name)


length_objective.init_head = lambda encoder: {
  'weight': jnp.zeros(encoder.vector_dim)
}
