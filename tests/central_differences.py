"""Compares gradients with central differences of the loss values."""

import jax
import numpy as np


def assert_gradients_of_values(compute, args, *, rtol=1e-6, step=1e-5):
  """Gradients are central differences of values, along two directions.

  In float64, where the differences are exact enough. One compiled program says
  it all, where `jax.test_util.check_grads` compiles four. It holds of no value
  with a `stop_gradient` that counts.

  Args:
    compute: (*args) -> values, and their gradients by each of `args`: an array
      of any shape, and for each arg one of that shape followed by the arg's.
    args: float64 arrays, or the rows of one.
    rtol: of a difference.
    step: along a direction whose elements are normal.
  """
  _, gradients = compute(*args)
  rng = np.random.default_rng(0)
  for _ in range(2):
    ways = [rng.normal(size=np.shape(arg)) for arg in args]
    before, after = (
      np.asarray(compute(*jax.tree.map(move, list(args), ways))[0])
      for move in (lambda x, way: x - step * way, lambda x, way: x + step * way)
    )
    expected = sum(
      np.tensordot(gradient, way, axes=way.ndim)
      for gradient, way in zip(gradients, ways, strict=True)
    )
    assert np.abs(expected).min() > 1e-6, 'nothing depends on the arguments'
    np.testing.assert_allclose(
      (after - before) / (2 * step), expected, rtol=rtol, atol=1e-9
    )
