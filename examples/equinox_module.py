"""AdaptSSR on an encoder in Equinox."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from adaptssr_jax.augment import reorder
from adaptssr_jax.losses import adaptssr_loss

USERS, LENGTH, ITEMS, DIM = 64, 20, 100, 32
optimizer = optax.adam(3e-3)
draw_view = functools.partial(reorder, ratio=0.6)


class Encoder(eqx.Module):
  """Items [length] of one user, without padding, to its vector [dim]."""

  items: eqx.nn.Embedding
  dropout: eqx.nn.Dropout
  dense: eqx.nn.Linear

  def __call__(self, key, items):  # noqa: D102
    mean = jnp.mean(jax.vmap(self.items)(items), axis=0)
    return jnp.tanh(self.dense(self.dropout(mean, key=key)))


def loss(encoder, key, items):
  """The loss of a batch of items [users, length]."""
  view_key, pass_key = jax.random.split(key)
  draw_views = jax.vmap(jax.vmap(draw_view), in_axes=(0, None))
  views = draw_views(jax.random.split(view_key, (2, USERS)), items)
  # Each view twice, under different dropout: [view, pass, user, length].
  inputs = jnp.stack([views, views], axis=1)
  keys = jax.random.split(pass_key, (2, 2, USERS))
  return adaptssr_loss(jax.vmap(jax.vmap(jax.vmap(encoder)))(keys, inputs))


@eqx.filter_jit
def train_step(encoder, opt_state, key, items):
  """The encoder and the optimizer's state after one step, and the loss."""
  value, gradient = eqx.filter_value_and_grad(loss)(encoder, key, items)
  updates, opt_state = optimizer.update(gradient, opt_state)
  return eqx.apply_updates(encoder, updates), opt_state, value


if __name__ == '__main__':
  key = jax.random.key(0)
  items = jax.random.randint(key, (USERS, LENGTH), 1, ITEMS + 1)
  table = eqx.nn.Embedding(ITEMS + 1, DIM, key=key)
  dense = eqx.nn.Linear(DIM, DIM, key=key)
  encoder = Encoder(table, eqx.nn.Dropout(0.2), dense)
  opt_state = optimizer.init(eqx.filter(encoder, eqx.is_inexact_array))
  for step, step_key in enumerate(jax.random.split(key, 20)):
    encoder, opt_state, value = train_step(encoder, opt_state, step_key, items)
    print(f'step {step}, loss {value:.4f}')
