"""A loss that compiles quickly, trained by tests of steps."""

import functools

import jax
import jax.numpy as jnp

from adaptssr_jax import augment
from adaptssr_jax.objectives.users import as_sums, user_keys
from adaptssr_jax.ops.reductions import reduce_losses
from adaptssr_jax.table.lookup import look_up


def quick_objective(params, batch, key, *, mask_id, axis_name=None):
  """Of masked users: their rows and places, and the rows that are sampled.

  Args:
    params: of the model; of `encoder`, the places alone.
    batch: of this device; `sampled` only if the step draws some.
    key: of the step.
    mask_id: of the mask.
    axis_name: of the devices.
  """
  mask = functools.partial(augment.mask, ratio=0.5, mask_id=mask_id)
  keys = user_keys(key, batch['example_id'])
  items = jax.vmap(mask)(keys, batch['items'])
  states = look_up(params['table'], items)
  states = states + params['encoder']['position_embedding'][None]
  users = jnp.sum(states, axis=1, where=(items != 0)[..., None])
  losses = jnp.sum(jnp.sin(users), axis=1)
  if 'sampled' in batch:
    losses = losses + jnp.sum(
      jnp.sin(look_up(params['table'], batch['sampled']))
    )
  loss = reduce_losses(losses, batch['where'], axis_name=axis_name)
  return loss, as_sums(loss, batch['where'])
