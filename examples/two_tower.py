"""AdaptSSR in addition to the softmax of a two-tower model, with Optax."""

import functools

import jax
import jax.numpy as jnp
import optax

from adaptssr_jax.augment import crop
from adaptssr_jax.losses import adaptssr_loss

USERS, LENGTH, ITEMS, DIM = 64, 20, 100, 32
optimizer = optax.adam(1e-2)
draw_view = functools.partial(crop, ratio=0.6)


def user_tower(params, key, items):
  """Items [..., length], 0 for padding, to vectors of users [..., dim]."""
  real = (items > 0)[..., None]
  mean = jnp.mean(params['items'][items], axis=-2, where=real)
  kept = jax.random.bernoulli(key, 0.8, mean.shape)
  return jnp.tanh(kept * mean @ params['users'])


def loss(params, key, items, next_items):
  """The in-batch softmax loss of the next item, plus the AdaptSSR loss."""
  view_key, pass_key = jax.random.split(key)
  users = user_tower(params, pass_key, items)
  scores = users @ params['items'][next_items].T
  softmax = optax.softmax_cross_entropy_with_integer_labels(
    scores, jnp.arange(USERS)
  )
  view_keys = jax.random.split(view_key, (2, USERS))
  views = jax.vmap(jax.vmap(draw_view), in_axes=(0, None))(view_keys, items)
  # Each view twice, under different dropout: [view, pass, user, length].
  views = user_tower(params, pass_key, jnp.stack([views, views], axis=1))
  return jnp.mean(softmax) + 0.1 * adaptssr_loss(views)


@jax.jit
def train_step(params, opt_state, key, *batch):
  """The parameters and the optimizer's state after one step, and the loss."""
  value, gradient = jax.value_and_grad(loss)(params, key, *batch)
  updates, opt_state = optimizer.update(gradient, opt_state)
  return optax.apply_updates(params, updates), opt_state, value


if __name__ == '__main__':
  key = jax.random.key(0)
  items = jax.random.randint(key, (USERS, LENGTH + 1), 1, ITEMS + 1)
  batch = items[:, :-1], items[:, -1]
  table = 0.3 * jax.random.normal(key, (ITEMS + 1, DIM))
  params = {'items': table, 'users': jnp.eye(DIM)}
  opt_state = optimizer.init(params)
  for step, step_key in enumerate(jax.random.split(key, 20)):
    params, opt_state, value = train_step(params, opt_state, step_key, *batch)
    print(f'step {step}, loss {value:.4f}')
