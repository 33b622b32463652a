"""A large batch needs the memory of one microbatch and one block."""

import functools

import jax
import jax.numpy as jnp
import pytest

from adaptssr_jax import augment
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.losses import adaptssr_loss
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.ops.buckets import Buckets, in_buckets
from adaptssr_jax.ops.microbatches import in_microbatches
from adaptssr_jax.table.lookup import model_params
from tests.adaptssr_objective import adaptssr_objective
from tests.tiny_runs import PEAK_MIB, last_line_of

LARGE = (
  PEAK_MIB
  + """
import jax, jax.numpy as jnp
from adaptssr_jax import UserEncoder, adaptssr_loss
from adaptssr_jax.ops.buckets import Buckets
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.table.lookup import model_params

USERS, LENGTH = 8192, 8
encoder = UserEncoder(4_000, max_length=LENGTH, num_layers=1)
shape = (2, 1, USERS, LENGTH)
views = jax.random.randint(jax.random.key(0), shape, 1, 4_001)
# Two passes of each view, which differ by their dropout.
views = views.repeat(2, axis=1)
keys = jax.random.split(jax.random.key(1), views.shape[:-1])

def loss(params):
  users = Encoding(encoder, Buckets((8,), 512))(params, views, keys)
  return adaptssr_loss(users, block_size=256)

params = jax.jit(encoder.init)(jax.random.key(2), views[0, 0, :1])['params']
params = model_params(params)
value, gradient = jax.jit(jax.value_and_grad(loss))(params)
finite = all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
assert finite and 0 < value < 1, value
print(peak_mib())
"""
)


@pytest.mark.slow
def test_a_batch_of_8192_users_takes_less_than_1_gb():
  # The similarities of all anchors with all other users alone would need more.
  assert float(last_line_of(LARGE)) < 1e9 / 2**20


def temporary_bytes(function, *args):
  """Bytes that a compiled gradient needs besides its arguments and results."""
  compiled = jax.jit(jax.grad(function)).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_the_objective_of_16384_long_users_takes_less_than_4_gb():
  users, length = 16_384, 100
  # More layers would add only the activations of 16 sequences.
  encoder = UserEncoder(4_000, max_length=length, num_layers=1)
  crop = functools.partial(augment.crop, ratio=0.4)
  loss = functools.partial(
    adaptssr_objective,
    encoding=Encoding(encoder, Buckets((40,), 16)),
    augmentations=(crop, crop),
    block_size=256,
  )
  batch = {
    'items': jax.ShapeDtypeStruct((users, length), jnp.int32),
    'where': jax.ShapeDtypeStruct((users,), bool),
    'example_id': jax.ShapeDtypeStruct((users,), jnp.int32),
  }
  key = jax.eval_shape(jax.random.key, 0)
  params = jax.eval_shape(encoder.init, key, batch['items'])['params']
  gradient = jax.jit(jax.grad(loss, has_aux=True))
  compiled = gradient.lower(model_params(params), batch, key).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 3.5e9


def needed_by_the_loss(batch, **settings):
  loss = functools.partial(adaptssr_loss, **settings)
  users = jax.ShapeDtypeStruct((2, 2, batch, 8), jnp.float32)
  return temporary_bytes(loss, users)


@pytest.mark.parametrize('hard_negatives', [True, False])
def test_memory_of_the_loss_grows_with_the_batch_not_with_its_square(
  hard_negatives,
):
  needed = functools.partial(
    needed_by_the_loss, hard_negatives=hard_negatives, block_size=128
  )
  large = needed(4096)
  assert large < 2.2 * needed(2048)
  # The similarities of all anchors with all other users would need more.
  assert large < 4096 * 4 * 4096 * 4 / 4


def test_memory_of_the_loss_at_once_is_that_of_all_similarities():
  assert needed_by_the_loss(4096) > 4096 * 4 * 4096 * 4


def deep(matrix, rows):
  """Stands in for an encoder; its activations are 20 times as large as rows."""
  for _ in range(20):
    rows = jnp.tanh(rows @ matrix)
  return rows


def needed_by_the_encoder(encode, rows):
  """Bytes for the gradient of `encode(matrix, rows)` by the matrix."""

  def loss(matrix, rows):
    return jnp.sum(encode(functools.partial(deep, matrix), rows) ** 2)

  shapes = ((16, 16), (rows, 16))
  return temporary_bytes(
    loss, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
  )


def bucketed(encode, rows, size):
  """Encodes rows that `look_up` returns, as sequences of one item."""
  return in_buckets(
    lambda items, embedded: encode(embedded[:, 0]),
    jnp.ones((len(rows), 1), jnp.int32),
    buckets=Buckets((), size),
    look_up=lambda items: rows[:, None],
  )


@pytest.mark.parametrize('split', [in_microbatches, bucketed])
def test_memory_of_the_encoder_is_that_of_one_microbatch(split):
  activations = 20 * 64 * 16 * 4
  # Bytes per row for its input, its result, and its gradient.
  kept = 6 * 16 * 4
  whole = functools.partial(split, size=None)
  assert needed_by_the_encoder(whole, 1024) > 1024 / 64 * activations
  parts = functools.partial(split, size=64)
  assert needed_by_the_encoder(parts, 1024) < 3 * activations + kept * 1024
