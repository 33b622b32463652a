"""AdaptSSR on an encoder in Flax NNX, whose dropout makes the implicit view."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from adaptssr_jax.augment import crop, mask, one_of, reorder
from adaptssr_jax.losses import adaptssr_loss

USERS, LENGTH, ITEMS, DIM = 64, 20, 100, 32
draw_view = one_of(
  functools.partial(crop, ratio=0.4),
  functools.partial(mask, ratio=0.6, mask_id=ITEMS + 1),
  functools.partial(reorder, ratio=0.6),
)


class Encoder(nnx.Module):
  """Items [..., length], 0 for padding, to vectors of users [..., dim]."""

  def __init__(self, rngs: nnx.Rngs):
    self.items = nnx.Embed(ITEMS + 2, DIM, rngs=rngs)
    self.dropout = nnx.Dropout(0.2, rngs=rngs)
    self.dense = nnx.Linear(DIM, DIM, rngs=rngs)

  def __call__(self, items):  # noqa: D102
    real = (items > 0)[..., None]
    mean = jnp.mean(self.items(items), axis=-2, where=real)
    return jnp.tanh(self.dense(self.dropout(mean)))


@nnx.jit
def train_step(encoder, optimizer, key, items):
  """Updates the encoder on items [users, length], and returns the loss."""
  keys = jax.random.split(key, (2, USERS))
  views = jax.vmap(jax.vmap(draw_view), in_axes=(0, None))(keys, items)
  # Each view twice, under different dropout: [view, pass, user, length].
  inputs = jnp.stack([views, views], axis=1)
  value, gradient = nnx.value_and_grad(
    lambda encoder: adaptssr_loss(encoder(inputs))
  )(encoder)
  optimizer.update(encoder, gradient)
  return value


if __name__ == '__main__':
  encoder = Encoder(nnx.Rngs(0))
  optimizer = nnx.Optimizer(encoder, optax.adam(3e-3), wrt=nnx.Param)
  key = jax.random.key(0)
  items = jax.random.randint(key, (USERS, LENGTH), 1, ITEMS + 1)
  for step, step_key in enumerate(jax.random.split(key, 20)):
    value = train_step(encoder, optimizer, step_key, items)
    print(f'step {step}, loss {value:.4f}')
