"""The layers of the encoder: a Transformer block, pooling, and their parts.

`Dense` and `gelu` replace those of Flax, which are slower on a CPU.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

from adaptssr_jax.encoder.dropout import dropout
from adaptssr_jax.ops.similarity import unit_length

Real = Bool[Array, 'batch length']
# The seeds of one dropout; None for no dropout.
Seeds = UInt32[Array, 'batch 2'] | None
States = Float[Array, 'batch length embed']
Users = Float[Array, 'batch features']

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


class Block(nn.Module):
  """A Transformer block that normalises after each residual sum (post-LN).

  h <- LayerNorm(h + attention(h));  h <- LayerNorm(h + W gelu(W' h))
  """

  num_heads: int
  dropout_rate: float
  dtype: str = 'float32'
  causal: bool = False

  @nn.compact
  def __call__(
    self, hidden: States, *, where: Real, seeds: Sequence[Seeds]
  ) -> States:
    """Applies the block.

    Args:
      hidden: States `[batch, length, embed]`.
      where: Bool `[batch, length]`, False at padding.
      seeds: The seeds of three dropouts, each `[batch, 2]` as from
        `row_seeds`, or None for no dropout.

    Returns:
      States `[batch, length, embed]`.
    """
    embed_dim, rate, dtype = hidden.shape[-1], self.dropout_rate, self.dtype
    attention = Attention(
      self.num_heads, rate, dtype, self.causal, name='attention'
    )
    mixed = attention(hidden, where=where, seeds=seeds[0])
    hidden = hidden + dropout(seeds[1], mixed, rate=rate)
    hidden = LayerNorm(dtype=dtype, name='attention_norm')(hidden)
    with jax.named_scope('feed_forward'):
      inner = gelu(Dense(4 * embed_dim, dtype, name='expand')(hidden))
      outer = Dense(embed_dim, dtype, name='contract')(inner)
    hidden = hidden + dropout(seeds[2], outer, rate=rate)
    return LayerNorm(dtype=dtype, name='feed_forward_norm')(hidden)


class Attention(nn.Module):
  """Multi-head self-attention; padding is not attended to.

  head = dropout(softmax(q k^T / sqrt(dim))) v;  output = W concat(heads)

  With `causal`, a state attends only to itself and to earlier states.
  """

  num_heads: int
  dropout_rate: float
  dtype: str = 'float32'
  causal: bool = False

  @nn.compact
  def __call__(self, hidden: States, *, where: Real, seeds: Seeds) -> States:
    """Returns states of the same shape; `where` is False at padding."""
    batch, length, embed_dim = hidden.shape
    dim = embed_dim // self.num_heads

    # On a CPU, [batch, head, length, dim] multiplies twice as fast as
    # [batch, length, head, dim].
    query, key, value = (
      Dense(embed_dim, self.dtype, name=name)(hidden)
      .reshape(batch, length, self.num_heads, dim)
      .transpose(0, 2, 1, 3)
      for name in ('query', 'key', 'value')
    )
    scores = (query / math.sqrt(dim)) @ key.swapaxes(-1, -2)
    seen = where[:, None, None, :]
    if self.causal:
      seen = seen & jnp.tri(length, dtype=bool)[None, None]
    weights = masked_softmax(scores, where=seen)
    weights = dropout(seeds, weights.astype(self.dtype), rate=self.dropout_rate)
    heads = (weights @ value).transpose(0, 2, 1, 3)
    return Dense(embed_dim, self.dtype, name='output')(
      heads.reshape(batch, length, embed_dim)
    )


class AttentionPooling(nn.Module):
  """Pools the states of a sequence, once for each learned query.

  u_k = sum_t w_kt h_t,  w_k = softmax_t(q_k . h_t) over all but padding

  With `cosine`, q_k and h_t are scaled to length 1 in the weights.
  """

  num_queries: int
  cosine: bool

  @nn.compact
  def __call__(self, hidden: States, *, where: Real) -> Users:
    """Returns `[batch, num_queries * embed]`, zeros if all is padding."""
    batch, _, embed_dim = hidden.shape
    hidden = hidden.astype(jnp.float32)
    queries = self.param('query', normal, (self.num_queries, embed_dim))
    keys = hidden
    if self.cosine:
      queries, keys = unit_length(queries), unit_length(hidden)
    scores = jnp.einsum('kd,btd->bkt', queries, keys)
    weights = masked_softmax(scores, where=where[:, None, :])
    return (weights @ hidden).reshape(batch, self.num_queries * embed_dim)


def last_states(hidden: States, *, where: Real) -> Users:
  """The state of the last item of each sequence, in float32.

  `where` is False at padding, which is at the end. The result is zeros if all
  is padding.

  Example:
    >>> hidden = jnp.array([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    >>> where = jnp.array([[True, True, False], [False, False, False]])
    >>> last_states(hidden, where=where).tolist()
    [[2.0], [0.0]]
  """
  count = jnp.sum(where, axis=1)
  index = jnp.maximum(count - 1, 0)[:, None, None]
  last = jnp.take_along_axis(hidden, index, axis=1)[:, 0].astype(jnp.float32)
  return jnp.where(count[:, None] > 0, last, 0)


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
