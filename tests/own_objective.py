"""An objective of a user of the library, trained by a test."""

import jax.numpy as jnp

from adaptssr_jax.objectives.users import (
  as_sums,
  encode_sequences,
  user_keys,
)
from adaptssr_jax.ops.reductions import reduce_losses


def length_objective(
  params, batch, key, *, encoder, deterministic, buckets, axis_name
):
  """The vector of a user predicts how many behaviours the user has."""
  keys = None if deterministic else user_keys(key, batch['example_id'])
  users = encode_sequences(
    params, encoder, batch['items'], keys=keys, buckets=buckets
  )
  wanted = jnp.log1p(jnp.sum(batch['items'] != 0, axis=1))
  losses = jnp.square(users @ params['head']['weight'] - wanted)
  loss = reduce_losses(losses, batch['where'], axis_name=axis_name)
  return loss, as_sums(loss, batch['where'])


length_objective.init_head = lambda encoder: {
  'weight': jnp.zeros(encoder.vector_dim)
}
