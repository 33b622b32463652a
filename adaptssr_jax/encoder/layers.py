"""Layers of the encoder, where those of Flax are slower on a CPU."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

# The standard deviation of initial matrices and embeddings.
INIT_STDDEV = 0.02
# Parameters are float32, also where jax_enable_x64 makes float64 the default.
normal = nn.initializers.normal(stddev=INIT_STDDEV, dtype=jnp.float32)
zeros = functools.partial(nn.initializers.zeros, dtype=jnp.float32)

# As in BERT. E[x^2] - E[x]^2, the faster variance, is too inexact for this
# epsilon.
LayerNorm = functools.partial(
  nn.LayerNorm, epsilon=1e-12, use_fast_variance=False
)


class Dense(nn.Module):
  """An affine map of the last axis, W x + b, with W from N(0, 0.02).

  Attributes:
    features: Size of the last axis of the result.
    dtype: Dtype of the computation and the result; parameters are float32.

  Example:
    >>> x = jnp.ones((2, 3, 8))
    >>> Dense(4).init_with_output(jax.random.key(0), x)[0].shape
    (2, 3, 4)
  """

  features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, x: Float[Array, '*batch inputs']
  ) -> Float[Array, '*batch features']:
    """Maps `[..., inputs]` to `[..., features]`."""
    inputs = x.shape[-1]
    kernel = self.param('kernel', normal, (inputs, self.features))
    bias = self.param('bias', zeros, (self.features,))
    # As a matrix, because XLA would transpose the array to sum the gradient of
    # the bias over two axes.
    rows = jnp.asarray(x, self.dtype).reshape(-1, inputs)
    rows @= jnp.asarray(kernel, self.dtype)
    rows += jnp.asarray(bias, self.dtype)[None]
    return rows.reshape(*x.shape[:-1], self.features)


@jax.custom_jvp
def gelu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """The exact Gaussian error linear unit, of an array of any shape.

  y = x cdf(x),  dy = (cdf(x) + x pdf(x)) dx,  of the standard normal

  Example:
    >>> print(f'{gelu(jnp.array(1.0)):.4f}')
    0.8413
  """
  return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  cdf = _normal_cdf(x)
  pdf = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
  return x * cdf, (cdf + x * pdf) * dx


def _normal_cdf(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  # XLA computes erf by one polynomial; erfc, which jax.nn.gelu uses, takes
  # three.
  return 0.5 + 0.5 * lax.erf(x / math.sqrt(2))


@jax.named_scope('softmax')
def masked_softmax(
  scores: Float[Array, '*batch length'],
  *,
  where: Bool[Array, '*#batch length'],
) -> Float[Array, '*batch length']:
  """Softmax in float32 over the last axis; zeros if everything is masked."""
  # Not -inf: the softmax of a row of -inf and its gradient would be nan.
  least = jnp.finfo(jnp.float32).min
  weights = nn.softmax(jnp.where(where, scores.astype(jnp.float32), least))
  return jnp.where(where, weights, 0)
