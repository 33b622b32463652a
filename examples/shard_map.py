"""AdaptSSR by `jax.shard_map`: the users of all devices are negatives."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaptssr_jax.augment import random_slice
from adaptssr_jax.losses import adaptssr_loss

USERS, LENGTH, ITEMS, DIM = 64, 40, 100, 32


def encode(params, keys, items):
  """Items [users, length] to vectors [users, dim], under dropout."""
  real = (items > 0)[..., None]
  mean = jnp.mean(params['items'][items], axis=1, where=real)
  draw_mask = functools.partial(jax.random.bernoulli, p=0.8, shape=(DIM,))
  return jnp.tanh(jax.vmap(draw_mask)(keys) * mean @ params['weights'])


def loss(params, keys, items):
  """The loss over all devices, of the users of this one."""
  draw_slice = functools.partial(random_slice, lengths=(5, 20))
  users = []
  for view in (0, 1):
    view_keys, *pass_keys = jax.vmap(jax.random.split, (0, None), 1)(
      jax.vmap(functools.partial(jax.random.fold_in, data=view))(keys), 3
    )
    slices = jax.vmap(draw_slice)(view_keys, items)
    users.append([encode(params, keys, slices) for keys in pass_keys])
  return adaptssr_loss(jnp.array(users), axis_name='users')


def train_step(params, keys, items):
  """The parameters after one step, and the loss: the same on all devices."""
  value, gradient = jax.value_and_grad(loss)(params, keys, items)
  gradient = jax.lax.pmean(gradient, 'users')
  return jax.tree.map(lambda p, g: p - 3 * g, params, gradient), value


if __name__ == '__main__':
  mesh = Mesh(jax.devices(), ('users',))
  specs = {'in_specs': (P(), P('users'), P('users')), 'out_specs': (P(), P())}
  step_over_devices = jax.jit(jax.shard_map(train_step, mesh=mesh, **specs))
  key = jax.random.key(0)
  items = jax.random.randint(key, (USERS, LENGTH), 1, ITEMS + 1)
  params = {
    'items': jax.random.normal(key, (ITEMS + 1, DIM)),
    'weights': jnp.eye(DIM),
  }
  # Replicated, as each step returns them, so that the step is compiled once.
  params = jax.device_put(params, NamedSharding(mesh, P()))
  for step in range(20):
    keys = jax.random.split(jax.random.fold_in(key, step), USERS)
    params, value = step_over_devices(params, keys, items)
    print(f'step {step}, loss {value:.4f}')
