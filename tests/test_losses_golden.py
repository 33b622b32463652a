"""The losses reproduce reference arrays made by loops and by PyTorch."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax import losses

GOLDEN = pathlib.Path(__file__).parent / 'golden'
FILES = ('mpr_small', 'mpr_batch32', 'mpr_dissimilar')
PRECISIONS = {'float32': 1e-5, 'float64': 1e-6}
# Golden key: settings.
VARIANTS = {
  'paper': {},
  'lambda_half': {'fusion': 0.5},
  'all_pairs': {'hard_negatives': False},
  'all_pairs_lambda_half': {'fusion': 0.5, 'hard_negatives': False},
  'reference_code': {'fusion': 'batch_mean'},
}


@functools.cache
def golden(name):
  return dict(np.load(GOLDEN / f'{name}.npz'))


def stack(arrays):
  return np.stack(
    [
      np.stack([arrays['s_hat'], arrays['s_hat_pos']]),
      np.stack([arrays['s_tilde'], arrays['s_tilde_pos']]),
    ]
  )


# The shape of the largest batch; others are padded to it, so that one program
# serves all files.
SHAPE = (2, 2, 32, 64)


def padded(users):
  """Pads users to SHAPE; returns them and the mask of real users."""
  batch, dim = users.shape[2:]
  # Padding users are not zero; padded features are.
  whole = np.ones(SHAPE)
  whole[:, :, :batch] = 0
  whole[:, :, :batch, :dim] = users
  return whole, np.arange(SHAPE[2]) < batch


@pytest.fixture(params=PRECISIONS)
def precision(request):
  with jax.enable_x64(request.param == 'float64'):
    yield request.param


@jax.jit
def golden_results(users, where):
  """All values that the golden arrays check, in one compilation."""
  loss = functools.partial(losses.adaptssr_loss, where=where)
  each = functools.partial(loss, reduce_fn=None)
  return (
    {variant: each(users, **kwargs) for variant, kwargs in VARIANTS.items()},
    losses.augmentation_weight(users, fusion='adaptive', where=where),
    jax.value_and_grad(loss)(users),
    jax.grad(loss)(users, fusion='batch_mean'),
  )


@pytest.mark.parametrize('name', FILES)
def test_golden_losses_and_gradients(name, precision):
  arrays = golden(name)
  close = functools.partial(
    np.testing.assert_allclose, rtol=PRECISIONS[precision]
  )
  users, where = padded(stack(arrays))
  variants, weight, (loss, gradient), code_gradient = golden_results(
    jnp.asarray(users, precision), where
  )
  for variant, each in variants.items():
    assert each.dtype == precision
    each = each[where]
    close(each.mean(), arrays[f'loss_{variant}'], err_msg=variant)
    if variant != 'reference_code':
      hat = arrays[f'per_example_hat_{variant}']
      tilde = arrays[f'per_example_tilde_{variant}']
      close(each, (hat + tilde) / 2, err_msg=variant)
  close(loss, arrays['loss_paper'])
  close(weight[where], arrays['lambda'], atol=1e-7)
  assert_close_gradient(code_gradient, arrays['grad_reference_code'])
  if 'grad_paper_stop_lambda' in arrays:
    assert_close_gradient(gradient, arrays['grad_paper_stop_lambda'])


def assert_close_gradient(gradient, expected):
  atol = 1e-5 * np.abs(expected).max()
  expected = expected.reshape(2, 2, *expected.shape[1:])
  batch, dim = expected.shape[2:]
  gradient = gradient[:, :, :batch, :dim]
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=atol)


def similarities(users):
  """The similarities of the anchors users[0, 0], by NumPy."""
  users = users / np.linalg.norm(users, axis=-1, keepdims=True)
  cosines = np.einsum('bd,vpcd->bvpc', users[0, 0], users)
  row = np.arange(users.shape[2])
  own = cosines[row, :, :, row]
  cosines[row, :, :, row] = -np.inf
  return own[:, 0, 1:], own[:, 1], cosines.reshape(len(row), -1)


@jax.jit
def golden_halves(arrays, weight):
  each = functools.partial(losses.mpr_loss, *arrays, reduce_fn=None)
  return {
    'paper': each(weight=weight),
    'lambda_half': each(weight=0.5),
    'all_pairs': each(weight=weight, hard_negatives=False),
    'all_pairs_lambda_half': each(weight=0.5, hard_negatives=False),
  }


@pytest.mark.parametrize('name', FILES)
def test_golden_halves_from_similarities(name, precision):
  arrays = golden(name)
  users = stack(arrays)
  for half, views in {'hat': users, 'tilde': users[::-1]}.items():
    inputs = [jnp.asarray(x, precision) for x in similarities(views)]
    weight = jnp.asarray(arrays['lambda'], precision)
    for variant, loss in golden_halves(inputs, weight).items():
      expected = arrays[f'per_example_{half}_{variant}']
      np.testing.assert_allclose(loss, expected, rtol=PRECISIONS[precision])
