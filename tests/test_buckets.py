"""Encoding in buckets equals encoding the padded batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from adaptssr_jax.encoder.dropout import dropout, row_seeds
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.users import Encoding
from adaptssr_jax.ops import buckets as buckets_module
from adaptssr_jax.ops.buckets import AT_ONCE, Buckets, in_buckets
from adaptssr_jax.table.lookup import encoder_params, model_params
from tests.bounds import assert_same_to_rounding

LENGTHS = np.array([8, 1, 3, 0, 5, 2, 7, 3, 2, 6, 1, 4])
ITEMS = jnp.array([[1 + (n + t) % 9 if t < n else 0 for t in range(8)]
                   for n in LENGTHS])  # fmt: skip
KEYS = jax.random.split(jax.random.key(1), len(LENGTHS))
PARAMS = {
  'table': jnp.arange(40.0).reshape(10, 4) / 40,
  'map': jnp.eye(4) + 0.1,
}


def encode_embedded(params, items, embedded, keys):
  """A quick encoder, whose result depends on dropout and positions."""
  states = embedded + jnp.arange(items.shape[1])[None, :, None]
  states = dropout(row_seeds(keys, draws=1)[:, 0], states, rate=0.5)
  states = jnp.where(items[..., None] != 0, states, 0)
  return jnp.tanh(states.sum(axis=1) @ params['map'] / 20)


def encode_items(params, items, keys):
  return encode_embedded(params, items, params['table'][items], keys)


def users_of(params, items, keys, buckets=AT_ONCE, look_up=False):
  encode = encode_embedded if look_up else encode_items
  return in_buckets(
    functools.partial(encode, params),
    items,
    keys,
    buckets=buckets,
    look_up=(lambda items: params['table'][items]) if look_up else None,
  )


def weighted(encode, params, *args, **settings):
  """A loss with a different weight for each entry of the users."""
  users = encode(params, *args, **settings)
  return jnp.sum(users * jnp.arange(users.size).reshape(users.shape)), users


@functools.partial(jax.jit, static_argnames=('buckets', 'look_up'))
def users_and_gradients(params, items, keys, **settings):
  loss = functools.partial(weighted, users_of)
  return jax.grad(loss, has_aux=True)(params, items, keys, **settings)


def widths_of_rows(items, *args):
  """Returns, for each row, an item, the width of its program, and its args."""
  width = jnp.full(len(items), items.shape[1])
  return {'items': items[:, :1], 'width': width, 'args': args}


# The encoded vectors are sums of terms of 1 and more.
assert_close = functools.partial(assert_same_to_rounding, least=1.0)


@pytest.mark.parametrize(
  ('buckets', 'look_up'),
  [
    (Buckets((2, 5), size=4), True),
    (Buckets((1, 3, 7, 20), size=5), True),
    (Buckets((2, 5), size=5), False),
    (Buckets((3,)), True),
    (Buckets((), size=5), True),
    (Buckets((2, 9), size=100), False),
  ],
  ids=['even', 'filled up', 'items', 'one group', 'one width', 'large'],
)
def test_users_and_gradients_are_those_of_the_whole_batch(buckets, look_up):
  gradients, users = users_and_gradients(PARAMS, ITEMS, KEYS)
  done = users_and_gradients(
    PARAMS, ITEMS, KEYS, buckets=buckets, look_up=look_up
  )
  assert_close(done, (gradients, users))
  assert all(jnp.abs(leaf).max() > 1 for leaf in jax.tree.leaves(gradients))
  _, other = users_and_gradients(PARAMS, ITEMS, KEYS[::-1])
  assert jnp.abs(users - other).max() > 0.1


def of_the_encoder(encoder, params, items, keys, positions, buckets=AT_ONCE):
  encoding = Encoding(encoder, buckets)
  return encoding(params, items, keys, positions=positions)


# The last position and one in between; the empty row has none.
SLOTS = jnp.where(
  LENGTHS[:, None] > 0, jnp.stack([LENGTHS - 1, LENGTHS // 2], axis=1), 8
)


@pytest.fixture(scope='module')
def encoder_and_params():
  encoder = UserEncoder(9, max_length=8, embed_dim=4, num_layers=1)
  params = jax.jit(encoder.init)(jax.random.key(0), ITEMS)['params']
  return encoder, jax.tree.map(lambda leaf: leaf * 5, model_params(params))


def test_the_user_encoder_in_buckets(encoder_and_params):
  encoder, params = encoder_and_params
  loss = functools.partial(weighted, functools.partial(of_the_encoder, encoder))
  compute = jax.jit(jax.grad(loss, has_aux=True), static_argnames='buckets')
  args = (params, ITEMS, KEYS, None)
  gradients, users = compute(*args)
  assert_close(compute(*args, buckets=Buckets((3,), 5)), (gradients, users))
  assert not jnp.any(users[3])
  assert jnp.abs(users[:3]).max() > 0.1
  assert jnp.abs(gradients['table'][1:10]).max(axis=1).min() > 1e-3


def test_states_of_the_user_encoder_in_buckets(encoder_and_params):
  encoder, params = encoder_and_params
  encode = jax.jit(
    functools.partial(of_the_encoder, encoder), static_argnames='buckets'
  )
  # Without keys, as the draws of dropout belong to users.
  args = (params, ITEMS, None, SLOTS)
  users = encode(*args)
  assert_close(encode(*args, buckets=Buckets((3,), 5)), users)
  assert not jnp.any(users[3])
  variables = {'params': encoder_params(params)}
  apply = functools.partial(encoder.apply, method='hidden_states')
  states = jax.jit(apply)(variables, ITEMS)
  for row in (0, 4):
    assert_close(users[row], states[row][SLOTS[row]])


def test_devices_have_rows_and_buckets_of_their_own():
  rows = np.array([[1, 3, 5, 7, 8], [0, 2, 4, 6, 9]])
  users = functools.partial(users_of, buckets=Buckets((3,), 2), look_up=True)
  users = jax.pmap(users, in_axes=(None, 0, 0))(PARAMS, ITEMS[rows], KEYS[rows])
  _, whole = users_and_gradients(PARAMS, ITEMS, KEYS)
  assert_close(users, whole[rows])


def test_gradients_of_devices_add_up():
  split, settings = PartitionSpec('users'), {'buckets': Buckets((3,), 4)}

  def loss(params, items, keys, **settings):
    return jnp.sum(users_of(params, items, keys, **settings) ** 2)

  def gradient(params, items, keys):
    return jax.grad(loss)(params, items, keys, look_up=True, **settings)

  mapped = jax.shard_map(
    gradient,
    mesh=Mesh(jax.devices()[:2], ('users',)),
    in_specs=(PartitionSpec(), split, split),
    out_specs=PartitionSpec(),
  )
  whole = jax.jit(jax.grad(loss))(PARAMS, ITEMS, KEYS)
  assert_close(jax.jit(mapped)(PARAMS, ITEMS, KEYS), whole)


@pytest.mark.parametrize(
  ('widths', 'size'),
  [
    *(((2, 5, 8), size) for size in (1, 4, None)),
    *(((1, 3, 7, 20), size) for size in (5, 7, None)),
    *(((8,), size) for size in (4, None)),
    *(((), size) for size in (5, None)),
  ],
)
def test_each_row_has_the_least_width_that_holds_its_group(widths, size):
  buckets = Buckets(widths, size)
  encode = functools.partial(in_buckets, widths_of_rows, buckets=buckets)
  expected = np.full(12, 8)
  if buckets != AT_ONCE:
    order = np.argsort(LENGTHS)
    for group in range(0, 12, size or 12):
      rows = order[group : group + (size or 12)]
      longest = LENGTHS[rows].max()
      expected[rows] = min(w for w in (*widths, 8) if w >= longest)
  args = ({'row': jnp.arange(12)}, KEYS)
  done = jax.jit(encode)(ITEMS, *args)
  np.testing.assert_array_equal(done['width'], expected)
  np.testing.assert_array_equal(done['items'], ITEMS[:, :1])
  assert (done['args'][0]['row'] == jnp.arange(12)).all()
  assert (done['args'][1] == KEYS).all()


def test_pieces_of_a_large_batch_are_the_whole(monkeypatch):
  expected = users_and_gradients(PARAMS, ITEMS, KEYS)
  # Groups of 3 do not divide pieces of 5, and the last piece is smaller.
  monkeypatch.setattr(buckets_module, '_PIECE', 5)
  seen = []

  def table_of(items):
    seen.append(items.shape)
    return PARAMS['table'][items]

  encode = functools.partial(encode_embedded, PARAMS)
  buckets = Buckets((3,), 3)
  looked_up = functools.partial(
    in_buckets, encode, buckets=buckets, look_up=table_of
  )
  jax.eval_shape(looked_up, ITEMS, KEYS)
  assert set(seen) == {(5, 8)}
  # Compiled here, because the other function may have cached the program with
  # large pieces.
  compute = functools.partial(
    users_and_gradients.__wrapped__, buckets=buckets, look_up=True
  )
  assert_close(jax.jit(compute)(PARAMS, ITEMS, KEYS), expected)


def test_each_width_is_one_program():
  seen = []

  def encode(items):
    seen.append(items.shape)
    return items.sum(axis=1)

  jax.eval_shape(
    functools.partial(in_buckets, encode, buckets=Buckets((2, 5, 9), 3)), ITEMS
  )
  assert set(seen) == {(3, 2), (3, 5), (3, 8)}


def test_the_table_has_one_gradient_for_all_groups():
  def scatters(look_up):
    loss = functools.partial(
      weighted, users_of, buckets=Buckets((2, 5), 3), look_up=look_up
    )
    gradient = jax.grad(loss, has_aux=True)
    text = str(jax.make_jaxpr(gradient)(PARAMS, ITEMS, KEYS))
    return text.count(':f32[10,4] = scatter-add')

  assert scatters(look_up=True) == 1
  # Otherwise there is one in the program of each width.
  assert scatters(look_up=False) == 3


@pytest.mark.parametrize('widths', [(0, 8), (-1,), (5, 2), (3, 3)])
def test_bad_widths_are_refused(widths):
  with pytest.raises(ValueError, match='widths must be positive and in order'):
    in_buckets(widths_of_rows, ITEMS, buckets=Buckets(widths))


def test_a_bad_size_is_refused():
  with pytest.raises(ValueError, match='size must be at least 1 or None'):
    in_buckets(widths_of_rows, ITEMS, buckets=Buckets((2,), 0))


@pytest.mark.parametrize('size', [None, 2])
@pytest.mark.parametrize('shape', [(0, 8), (1, 8), (2, 1), (3, 1), (3, 8)])
def test_few_rows_short_ones_and_empty_ones(shape, size):
  encode = functools.partial(
    in_buckets, widths_of_rows, buckets=Buckets((2, 4), size)
  )
  compiled = jax.jit(encode)
  for item in (0, 1):
    done = compiled(jnp.full(shape, item))
    width = min(shape[1], 8 if item else 2)
    assert done['width'].tolist() == [width] * shape[0]
    assert done['items'].tolist() == [[item]] * shape[0]
