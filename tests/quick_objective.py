"""A loss that compiles quickly, and its training, for tests of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptssr_jax import augment
from adaptssr_jax.checkpoint.checkpoints import Checkpoints
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.objectives.users import mean_loss, user_keys
from adaptssr_jax.table.lookup import look_up
from adaptssr_jax.table.row_adam import row_adam
from adaptssr_jax.training.row_step import init_row_state
from adaptssr_jax.training.step import init_state

USERS, LENGTH = 16, 5
KEY = jax.random.key(3)
# eps exceeds the rounding errors of gradients that are 0 in exact arithmetic,
# such as those of the bias of keys.
ADAM = 0.01, 0.9, 0.999, 1e-4


def start_dense(params):
  return init_state(params, optax.adam(*ADAM))


def start_rows(params):
  return init_row_state(params, optax.adam(*ADAM), row_adam(*ADAM))


def train(step, state, batches):
  """The state after a step on each batch, and the losses."""
  losses = []
  for batch in batches:
    state, metrics = step(state, batch, KEY)
    losses.append(float(metrics['loss']))
  return state, losses


def save(state, folder, encoder):
  items = [str(item) for item in range(encoder.num_items)]
  with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(state, describe(encoder, items, flags={}))


def restore(like, folder):
  with Checkpoints(folder, keep=1) as checkpoints:
    return checkpoints.restore(like=like)


def random_batch(step, *, num_items, devices=None):
  """Users of any length, of whom the last is padding; others at each step."""
  rng = np.random.default_rng(step)
  lengths = rng.integers(0, LENGTH + 1, USERS)
  items = rng.integers(1, num_items + 1, (USERS, LENGTH)).astype(np.int32)
  batch = {
    'items': np.where(np.arange(LENGTH) < lengths[:, None], items, 0),
    'where': np.arange(USERS) < USERS - 1,
    'example_id': np.arange(USERS, dtype=np.int32) + USERS * step,
  }
  if devices is None:
    return batch
  return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def quick_objective(params, batch, key, *, encoding):
  """The sum of sines of masked sequences' embeddings, and of sampled rows.

  Of `params['encoder']` only the position embeddings are used. The batch may
  have `sampled` ids.
  """
  mask = functools.partial(
    augment.mask, ratio=0.5, mask_id=encoding.encoder.mask_id
  )
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
  return mean_loss(losses, batch['where'], axis_name=encoding.axis_name)
