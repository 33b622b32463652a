"""AdaptSSR on an encoder in plain JAX: a mean of item vectors, one layer."""

import functools

import jax
import jax.numpy as jnp

from adaptssr_jax.augment import mask
from adaptssr_jax.losses import adaptssr_loss

USERS, LENGTH, ITEMS, DIM = 64, 20, 100, 32
draw_view = functools.partial(mask, ratio=0.6, mask_id=ITEMS + 1)


def encode(params, key, items):
  """The vector [dim] of one user, of items [length], 0 for padding."""
  rows = params['items'][items] * (items > 0)[:, None]
  mean = jnp.sum(rows, axis=0) / jnp.maximum(jnp.sum(items > 0), 1)
  kept = jax.random.bernoulli(key, 0.8, mean.shape)
  return jnp.tanh(kept * mean @ params['weights'])


def loss(params, key, items):
  """The loss of a batch of items [users, length]."""
  view_key, pass_key = jax.random.split(key)
  view_keys = jax.random.split(view_key, (2, USERS))
  views = jax.vmap(jax.vmap(draw_view), in_axes=(0, None))(view_keys, items)
  # Each view twice, under different dropout: [view, pass, user, dim].
  keys = jax.random.split(pass_key, (2, 2, USERS))
  encode_users = jax.vmap(encode, in_axes=(None, 0, 0))
  encode_passes = jax.vmap(encode_users, in_axes=(None, 0, None))
  encode_views = jax.vmap(encode_passes, in_axes=(None, 0, 0))
  return adaptssr_loss(encode_views(params, keys, views))


@jax.jit
def train_step(params, key, items):
  """The parameters after one step of gradient descent, and the loss."""
  value, gradient = jax.value_and_grad(loss)(params, key, items)
  return jax.tree.map(lambda p, g: p - 3 * g, params, gradient), value


if __name__ == '__main__':
  key = jax.random.key(0)
  items = jax.random.randint(key, (USERS, LENGTH), 1, ITEMS + 1)
  params = {
    'items': jax.random.normal(key, (ITEMS + 2, DIM)),
    'weights': jnp.eye(DIM),
  }
  for step, step_key in enumerate(jax.random.split(key, 20)):
    params, value = train_step(params, step_key, items)
    print(f'step {step}, loss {value:.4f}')
