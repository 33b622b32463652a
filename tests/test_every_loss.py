"""What holds of every loss: masks, extreme users, programs, devices, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from adaptssr_jax import diagnostics, metrics
from adaptssr_jax.losses import (
  adaptssr_loss,
  augmentation_weight,
  coles_loss,
  listwise_ranking_loss,
  mpr_loss,
  nt_xent_loss,
)
from tests.central_differences import assert_gradients_of_values

DEVICES, DIM = 8, 4
SPLIT = PartitionSpec('users')


def adaptssr(users, *, blocks=None, fixed=False, fusion='adaptive', **settings):
  fusion = 0.3 if fixed else fusion
  return adaptssr_loss(users, block_size=blocks, fusion=fusion, **settings)


def nt_xent(users, *, blocks=None, fixed=False, **settings):
  del fixed
  return nt_xent_loss(users[:, 0], block_size=blocks, **settings)


def coles(users, *, blocks=None, fixed=False, **settings):
  del blocks, fixed
  return coles_loss(users[:, 0], margin=1.0, num_negatives=3, **settings)


# (users [views, 2, batch, dim], *, blocks, fixed, ...) -> loss. With `fixed`,
# lambda is a number, and not a function of the users whose gradient is stopped.
LOSSES = {
  'pairs': adaptssr,
  'all pairs': functools.partial(
    adaptssr, fusion='batch_mean', hard_negatives=False, temperature=2.0
  ),
  'smooth': functools.partial(adaptssr, smooth=0.3, temperature=0.2),
  'list': functools.partial(adaptssr, form='list', temperature=0.5),
  'nt_xent': functools.partial(nt_xent, temperature=0.2),
  'products': functools.partial(nt_xent, similarity='dot'),
  'coles': coles,
}
EVERY = tuple(LOSSES)
# Those that do not depend on the length of users.
COSINES = tuple(name for name in EVERY if name != 'products')


def random_users(batch=5, seed=0):
  users = np.random.default_rng(seed).normal(size=(2, 2, batch, DIM))
  # Views of one user resemble each other, so that lambda is not always 1.
  return (users + 1.5 * users[:1, :1]).astype(np.float32)


STATIC = ('names', 'blocks', 'fixed', 'axis_name')


@functools.partial(jax.jit, static_argnames=STATIC)
def every_loss(users, where=None, *, names=EVERY, **shared):
  """The losses, [names]."""
  return jnp.stack(
    [LOSSES[name](users, where=where, **shared) for name in names]
  )


@functools.partial(jax.jit, static_argnames=STATIC)
def every_gradient(users, where, **shared):
  """The losses, [names], and their gradients, [names, *users.shape]."""

  def twice(users):
    return (every_loss(users, where, **shared),) * 2

  gradients, losses = jax.jacrev(twice, has_aux=True)(users)
  return losses, gradients


def in_blocks(users, where=None, **shared):
  """Of 5 users in blocks of 2, so that the last block is not full."""
  # Always a mask: another signature would take seconds to compile.
  where = np.ones(users.shape[2], bool) if where is None else where
  return every_gradient(users, where, blocks=2, **shared)


SOME = np.array([True, False, True, True, False])


@pytest.mark.parametrize('padding', [np.nan, np.inf])
def test_padding_changes_nothing_and_gets_no_gradient(padding):
  users = random_users()
  garbage = np.where(SOME[:, None], users, np.float32(padding))
  losses, gradients = in_blocks(garbage, SOME)
  expected, of_those = in_blocks(users[:, :, SOME])
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  kept = gradients[:, :, :, SOME]
  np.testing.assert_allclose(kept, of_those, rtol=1e-4, atol=1e-5)
  assert not gradients[:, :, :, ~SOME].any()
  losses, gradients = in_blocks(garbage, np.zeros(5, bool))
  assert not losses.any()
  assert not gradients.any()


def test_a_user_without_negatives():
  users, one = random_users(), np.arange(5) == 3
  losses, gradients = in_blocks(users, one)
  expected, _ = in_blocks(users[:, :, one])
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert np.isfinite(gradients).all()
  for name, loss, gradient in zip(EVERY, losses, gradients, strict=True):
    if name in ('nt_xent', 'products'):
      assert not loss
    else:
      assert np.abs(gradient[:, :, 3]).max() > 1e-4


EXTREMES = {
  'zero': np.zeros((2, 2, 5, DIM)),
  'one zero': np.where(np.arange(5)[:, None] == 1, 0, random_users()),
  'huge': 1e30 * random_users(),
  'tiny': 1e-30 * random_users(),
  'identical': np.ones((2, 2, 5, DIM)),
  'opposite': np.ones((2, 2, 5, DIM)) * np.reshape([1, -1], (2, 1, 1, 1)),
}


@pytest.mark.parametrize('name', EXTREMES)
def test_extreme_users_stay_finite(name):
  losses, gradients = in_blocks(np.float32(EXTREMES[name]), names=COSINES)
  assert np.isfinite(losses).all()
  assert np.isfinite(gradients).all()
  # Those of the paper.
  assert np.all((losses[:2] > 0) & (losses[:2] < 3))


def test_scale_of_users_does_not_matter():
  scale = np.float32([1e-8, 1e-3, 1.0, 1e5, 1e25])[:, None]
  found, expected = (
    in_blocks(users, names=COSINES)[0]
    for users in (scale * random_users(), random_users())
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_order_of_users_changes_nothing():
  users, order = random_users(), np.array([3, 0, 4, 2, 1])
  losses, gradients = in_blocks(users[:, :, order])
  expected, of_users = in_blocks(users)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  np.testing.assert_allclose(
    gradients, of_users[:, :, :, order], rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize('blocks', [1, 100])
def test_blocks_of_any_size_are_the_whole(blocks):
  compute = functools.partial(
    every_gradient,
    random_users(),
    np.ones(5, bool),
    names=('pairs', 'all pairs', 'list', 'nt_xent'),
  )
  (losses, gradients), expected = compute(blocks=blocks), compute(blocks=None)
  np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
  np.testing.assert_allclose(gradients, expected[1], rtol=1e-4, atol=1e-5)


def test_vmap_is_a_loop_and_jit_changes_nothing():
  batches = np.array([random_users(seed=seed) for seed in range(2)])
  looped = [in_blocks(users)[0] for users in batches]
  mapped = jax.vmap(functools.partial(every_loss, blocks=2))
  np.testing.assert_allclose(jax.jit(mapped)(batches), looped, rtol=1e-5)
  at_once = LOSSES['pairs'](batches[0])
  np.testing.assert_allclose(at_once, looped[0][0], rtol=1e-5)


def test_gradients_are_those_of_the_values():
  def compute(users):
    losses, gradients = in_blocks(users, fixed=True)
    return losses, [gradients]

  with jax.enable_x64(True):
    assert_gradients_of_values(compute, [random_users().astype(float)])


# Over devices.

# Devices hold 0, 1 or 2 unmasked users.
WHERE = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], bool)
OFFSET = np.random.default_rng(1).normal(size=(1, 1, 1, DIM)).astype('f')


def of_a_parameter(offset, inputs, where, **shared):
  """Losses and gradients of an encoder that adds its parameter to the inputs.

  Over devices, the gradients are their means.
  """

  def twice(offset):
    return (every_loss(inputs + offset, where, **shared),) * 2

  gradients, losses = jax.jacrev(twice, has_aux=True)(offset)
  if 'axis_name' in shared:
    gradients = jax.lax.pmean(gradients, shared['axis_name'])
  return losses, gradients


def on_pmap(function, users, where):
  split = np.moveaxis(users.reshape(2, 2, DEVICES, -1, DIM), 2, 0)
  mapped = jax.pmap(function, 'users', in_axes=(None, 0, 0))
  results = mapped(OFFSET, split, where.reshape(DEVICES, -1))
  for leaf in jax.tree.leaves(results):
    np.testing.assert_allclose(leaf, leaf[:1].repeat(DEVICES, 0), rtol=1e-5)
  return jax.tree.map(lambda x: x[0], results)


def on_shard_map(function, users, where, check_vma=True):
  mapped = jax.shard_map(
    function,
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(
      PartitionSpec(),
      PartitionSpec(None, None, 'users'),
      PartitionSpec() if where is None else SPLIT,
    ),
    out_specs=PartitionSpec(),
    check_vma=check_vma,
  )
  return jax.jit(mapped)(OFFSET, users, where)


FEW = ('pairs', 'all pairs', 'nt_xent')


@pytest.mark.parametrize(
  ('mapped', 'where', 'names'),
  [
    (on_pmap, WHERE, EVERY),
    (on_shard_map, WHERE, EVERY),
    (functools.partial(on_shard_map, check_vma=False), WHERE, FEW),
    (on_shard_map, None, FEW),
  ],
  ids=['pmap', 'shard_map', 'shard_map_unchecked', 'all_users'],
)
def test_devices_have_loss_and_gradient_of_the_whole_batch(
  mapped, where, names
):
  shared = {'names': names, 'blocks': 1}
  function = functools.partial(of_a_parameter, axis_name='users', **shared)
  users = random_users(16)
  losses, gradients = mapped(function, users, where)
  whole = jax.jit(functools.partial(of_a_parameter, **shared))
  expected, of_whole = whole(OFFSET, users, where)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  for gradient, other in zip(gradients, of_whole, strict=True):
    np.testing.assert_allclose(
      gradient, other, rtol=1e-4, atol=1e-5 * np.abs(other).max()
    )


def of_each(users, where, axis_name=None):
  """Losses per user, and both kinds of lambda."""
  shared = {'where': where, 'axis_name': axis_name}
  each = adaptssr_loss(users, reduce_fn=None, **shared)
  return each, [
    augmentation_weight(users, fusion=fusion, **shared)
    for fusion in ('adaptive', 'batch_mean')
  ]


@pytest.mark.parametrize('check_vma', [True, False])
def test_losses_per_user_are_local_and_weights_of_the_whole_batch(
  check_vma,
):
  users = random_users(16)
  mapped = jax.shard_map(
    functools.partial(of_each, axis_name='users'),
    mesh=Mesh(jax.devices()[:DEVICES], ('users',)),
    in_specs=(PartitionSpec(None, None, 'users'), SPLIT),
    out_specs=(SPLIT, [SPLIT, PartitionSpec()]),
    check_vma=check_vma,
  )
  each, weights = jax.jit(mapped)(users, WHERE)
  expected, expected_weights = jax.jit(of_each)(users, WHERE)
  np.testing.assert_allclose(each, expected, rtol=1e-5)
  for weight, wanted in zip(weights, expected_weights, strict=True):
    # One minus a mean near one has the rounding error of 1.
    np.testing.assert_allclose(weight, wanted, rtol=0, atol=1e-6)


# In the programs of others: no users, constants, dtypes, explicit meshes.

EACH = pytest.mark.parametrize('name', EVERY)


@EACH
@pytest.mark.parametrize('blocks', [None, 2])
def test_a_batch_without_users_is_zero(name, blocks):
  nobody = random_users(0)
  loss = functools.partial(LOSSES[name], blocks=blocks)
  for where in (None, np.ones(0, bool)):
    value, grad = jax.value_and_grad(loss)(nobody, where=where)
    assert (value, grad.shape) == (0, nobody.shape)
    assert loss(nobody, where=where, reduce_fn=None).shape == (0,)


def test_diagnostics_of_nobody_are_empty():
  found = diagnostics.view_similarities(random_users(0))
  assert {x.shape for x in found} == {(0,)}


@EACH
def test_a_loss_can_be_linearized_and_exported(name):
  users = random_users()
  loss = functools.partial(LOSSES[name], blocks=2)
  tangent = jax.make_jaxpr(lambda u: jax.jvp(loss, (u,), (u,)))(users)
  hessian = jax.eval_shape(jax.hessian(loss), users)
  exported = jax.export.export(jax.jit(jax.value_and_grad(loss)))(users)
  assert len(tangent.out_avals) == len(exported.out_avals) == 2
  assert hessian.shape == users.shape * 2


@EACH
def test_axes_of_an_explicit_mesh_can_be_made_automatic(name):
  mesh = jax.make_mesh((4,), ('users',), axis_types=(AxisType.Explicit,))
  spec = PartitionSpec(None, None, 'users', None)
  with jax.set_mesh(mesh):
    users = jax.device_put(random_users(8), jax.NamedSharding(mesh, spec))
    where = jax.device_put(np.arange(8) < 6, jax.P('users'))
    loss = jax.sharding.auto_axes(
      lambda users, where: LOSSES[name](users, where=where, blocks=2),
      out_sharding=PartitionSpec(),
    )
    value, gradient = jax.eval_shape(jax.value_and_grad(loss), users, where)
  assert value.shape == ()
  assert gradient.sharding.spec == spec


def test_settings_may_be_constants_of_a_program():
  half, users = jnp.float32(0.5), random_users()
  similarities = (np.ones((3, 1), np.float32),) * 3
  for loss, args, setting in (
    (adaptssr_loss, (users,), 'temperature'),
    (adaptssr_loss, (users,), 'fusion'),
    (nt_xent_loss, (users[:, 0],), 'temperature'),
    (functools.partial(mpr_loss, weight=1), similarities, 'temperature'),
    (
      functools.partial(listwise_ranking_loss, weight=1),
      similarities,
      'temperature',
    ),
  ):
    constant = functools.partial(loss, **{setting: half})
    assert jax.eval_shape(jax.jit(constant), *args).shape == ()
  negative = functools.partial(adaptssr_loss, temperature=-half)
  with pytest.raises(ValueError, match='temperature must be positive'):
    jax.eval_shape(jax.jit(negative), users)


@pytest.mark.parametrize('x64', [False, True])
def test_no_dtype_is_promoted(x64):
  with jax.enable_x64(x64), jax.numpy_dtype_promotion('strict'):
    users, labels = jnp.asarray(random_users()), jnp.array([0, 1, 1])
    trace = functools.partial(jax.eval_shape, where=jnp.ones(5, bool))
    found = [trace(loss, users) for loss in LOSSES.values()]
    found += [
      trace(diagnostics.view_similarities, users),
      trace(diagnostics.uniformity, users[0, 0]),
      trace(diagnostics.mean_cosine, users[0, 0]),
      trace(diagnostics.effective_rank, users[0, 0]),
      metrics.macro_f1(labels, labels, num_classes=3),
      metrics.ndcg(labels + 1, k=2),
      metrics.reciprocal_rank(labels + 1, k=2),
    ]
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('f4')}


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_small_floats_are_compared_in_float32(dtype):
  users = jnp.asarray(random_users(), dtype)
  losses, gradients = in_blocks(users)
  assert (losses.dtype, gradients.dtype) == (jnp.float32, dtype)
  expected, _ = in_blocks(users.astype(jnp.float32))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert np.isfinite(gradients.astype(jnp.float32)).all()
