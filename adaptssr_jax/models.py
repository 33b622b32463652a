"""The user encoder, its parts, and the head that fine-tuning puts on it."""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from adaptssr_jax.dropout import Dropout
from adaptssr_jax.layers import LayerNorm, gelu
from adaptssr_jax.similarity import unit_length

Items = Int[ArrayLike, 'batch length']
Real = Bool[Array, 'batch length']
States = Float[Array, 'batch length embed']
Users = Float[Array, 'batch features']

_normal = nn.initializers.normal(stddev=0.02)


class UserEncoder(nn.Module):
  """Encodes the items of a user into one vector: a small bidirectional BERT.

  h = blocks(dropout(LayerNorm(E[items] + P)));  u = concat_k pool(q_k, h)

  Ids are 0 for padding (at the end of a sequence), 1..num_items, and
  `mask_id` = num_items + 1. A sequence without items is encoded as zeros. An id
  beyond the table gives nan. Matrices and embeddings start as N(0, 0.02).

  Attributes:
    num_items: How many items there are, padding and mask not counted.
    max_length: The longest sequence; shorter arrays are as welcome.
    embed_dim: Features of an item and of a hidden state.
    num_layers: Transformer blocks.
    num_heads: Attention heads, a divisor of `embed_dim`.
    num_queries: Learned queries, each of which pools the hidden states.
    cosine_pooling: Pool by the cosine, not the product, of query and state.
    dropout_rate: In [0, 1); rounded to a multiple of 1/256, see `Dropout`.

  Raises:
    ValueError: If a field is out of its range.

  Example:
    >>> import jax
    >>> encoder = UserEncoder(num_items=50, max_length=10, embed_dim=8)
    >>> items = jnp.array([[3, 7, 7, 0], [12, 0, 0, 0]])
    >>> params = encoder.init(jax.random.key(0), items)['params']
    >>> encoder.apply({'params': params}, items).shape
    (2, 8)
    >>> encoder.apply({'params': params}, items, method='hidden_states').shape
    (2, 4, 8)

  Reference:
    Sun et al., BERT4Rec, CIKM 2019 (https://arxiv.org/abs/1904.06690).
  """

  num_items: int
  max_length: int = 100
  embed_dim: int = 64
  num_layers: int = 2
  num_heads: int = 2
  num_queries: int = 1
  cosine_pooling: bool = False
  dropout_rate: float = 0.1

  def __post_init__(self):
    names = 'num_items max_length embed_dim num_layers num_heads num_queries'
    for name in names.split():
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name} must be at least 1, not {getattr(self, name)}'
        )
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f'num_heads must divide embed_dim: {self.embed_dim} features do not '
        f'split into {self.num_heads} heads'
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f'dropout_rate must be in [0, 1), not {self.dropout_rate}'
      )
    super().__post_init__()

  def setup(self) -> None:
    """Declares the parameters and the parts, by their names in `params`."""
    self.item_embedding = self.param(
      'item_embedding', _normal, (self.num_items + 2, self.embed_dim)
    )
    self.position_embedding = self.param(
      'position_embedding', _normal, (self.max_length, self.embed_dim)
    )
    self.norm = LayerNorm()
    self.dropout = Dropout(self.dropout_rate)
    self.blocks = [
      Block(self.num_heads, self.dropout_rate) for _ in range(self.num_layers)
    ]
    self.pooling = AttentionPooling(self.num_queries, self.cosine_pooling)

  @property
  def mask_id(self) -> int:
    """The id that stands for a masked item: num_items + 1."""
    return self.num_items + 1

  def __call__(self, items: Items, *, deterministic: bool = True) -> Users:
    """Encodes users.

    Args:
      items: `[batch, length]`, ids, 0 at the end for padding.
      deterministic: False drops out; pass rngs={'dropout': key} to `apply`.

    Returns:
      `[batch, num_queries * embed_dim]`, not normalised.
    """
    hidden = self.hidden_states(items, deterministic=deterministic)
    return self.pooling(hidden, where=jnp.asarray(items) != 0)

  def hidden_states(
    self, items: Items, *, deterministic: bool = True
  ) -> States:
    """Encodes the items of users, each in the light of the others.

    Args:
      items: `[batch, length]`, ids, 0 at the end for padding.
      deterministic: False drops out; pass rngs={'dropout': key} to `apply`.

    Returns:
      `[batch, length, embed_dim]`, without meaning at padding.

    Raises:
      ValueError: If `length` is not in 1..max_length.
    """
    items = jnp.asarray(items)
    length = items.shape[-1]
    if not 1 <= length <= self.max_length:
      raise ValueError(
        f'a sequence of {length} items, but max_length is {self.max_length}: '
        'shorten the sequences or make the encoder longer'
      )
    # take: nan for an id beyond the table, where indexing would return another
    # item's row.
    hidden = jnp.take(self.item_embedding, items, axis=0)
    hidden = self.norm(hidden + self.position_embedding[None, :length])
    hidden = self.dropout(hidden, deterministic=deterministic)
    for block in self.blocks:
      hidden = block(hidden, where=items != 0, deterministic=deterministic)
    return hidden


class Block(nn.Module):
  """A Transformer block that normalises after each sum (post-LN).

  h <- LayerNorm(h + attention(h));  h <- LayerNorm(h + W gelu(W' h))
  """

  num_heads: int
  dropout_rate: float

  @nn.compact
  def __call__(
    self, hidden: States, *, where: Real, deterministic: bool
  ) -> States:
    """Applies the block to states; `where` is False at padding."""
    embed_dim = hidden.shape[-1]
    dropout = functools.partial(
      Dropout(self.dropout_rate, name='dropout'), deterministic=deterministic
    )
    attention = Attention(self.num_heads, self.dropout_rate, name='attention')
    mixed = attention(hidden, where=where, deterministic=deterministic)
    hidden = LayerNorm(name='attention_norm')(hidden + dropout(mixed))
    inner = gelu(_dense(4 * embed_dim, 'expand')(hidden))
    outer = _dense(embed_dim, 'contract')(inner)
    return LayerNorm(name='feed_forward_norm')(hidden + dropout(outer))


class Attention(nn.Module):
  """Multi-head self-attention; padding is not attended to.

  head = dropout(softmax(q k^T / sqrt(dim))) v;  output = W concat(heads)
  """

  num_heads: int
  dropout_rate: float

  @nn.compact
  def __call__(
    self, hidden: States, *, where: Real, deterministic: bool
  ) -> States:
    """Mixes states; `where` is False at padding."""
    batch, length, embed_dim = hidden.shape
    dim = embed_dim // self.num_heads

    # [batch, head, length, dim] multiplies twice as fast on CPU as
    # [batch, length, head, dim].
    query, key, value = (
      _dense(embed_dim, name)(hidden)
      .reshape(batch, length, self.num_heads, dim)
      .transpose(0, 2, 1, 3)
      for name in ('query', 'key', 'value')
    )
    scores = (query / math.sqrt(dim)) @ key.swapaxes(-1, -2)
    weights = masked_softmax(scores, where=where[:, None, None, :])
    weights = Dropout(self.dropout_rate, name='dropout')(
      weights.astype(value.dtype), deterministic=deterministic
    )
    heads = (weights @ value).transpose(0, 2, 1, 3)
    return _dense(embed_dim, 'output')(heads.reshape(batch, length, embed_dim))


class AttentionPooling(nn.Module):
  """Pools the states of a sequence, once for each learned query.

  u_k = sum_t w_kt h_t,  w_k = softmax_t(q_k . h_t) over the real positions

  With `cosine`, q_k and h_t are normalised for the weights.
  """

  num_queries: int
  cosine: bool

  @nn.compact
  def __call__(self, hidden: States, *, where: Real) -> Users:
    """Returns `[batch, num_queries * embed]`, zeros if all is padding."""
    batch, _, embed_dim = hidden.shape
    queries = self.param('query', _normal, (self.num_queries, embed_dim))
    keys = hidden
    if self.cosine:
      queries, keys = unit_length(queries), unit_length(hidden)
    scores = jnp.einsum('kd,btd->bkt', queries, keys)
    weights = masked_softmax(scores, where=where[:, None, :])
    users = weights.astype(hidden.dtype) @ hidden
    return users.reshape(batch, self.num_queries * embed_dim)


class TaskHead(nn.Module):
  """The head that fine-tuning puts on users: W relu(W' u).

  Attributes:
    num_outputs: Classes, or items to rank.
    hidden_dim: Features between the two layers.

  Example:
    >>> import jax
    >>> head = TaskHead(num_outputs=8)
    >>> users = jnp.ones((2, 64))
    >>> head.init_with_output(jax.random.key(0), users)[0].shape
    (2, 8)
  """

  num_outputs: int
  hidden_dim: int = 64

  @nn.compact
  def __call__(
    self, users: Float[ArrayLike, '*batch features']
  ) -> Float[Array, '*batch outputs']:
    """Returns logits `[..., num_outputs]` of users `[..., features]`."""
    hidden = nn.relu(_dense(self.hidden_dim, 'hidden')(users))
    return _dense(self.num_outputs, 'output')(hidden)


def masked_softmax(
  scores: Float[Array, '*batch length'],
  *,
  where: Bool[Array, '*#batch length'],
) -> Float[Array, '*batch length']:
  """Softmax in float32 over the last axis; all zeros where all is masked."""
  # The least number, not -inf: a row of -inf is nan, and so is its gradient.
  least = jnp.finfo(jnp.float32).min
  weights = nn.softmax(jnp.where(where, scores.astype(jnp.float32), least))
  return jnp.where(where, weights, 0)


def pooling_penalty(
  queries: Float[ArrayLike, 'query embed'],
) -> Float[Array, '']:
  """Measures how much the pooling queries of an encoder look alike.

  sqrt(sum_{j != k} cos(q_j, q_k)^2)

  Args:
    queries: `[num_queries, embed_dim]`, params['pooling']['query'].

  Returns:
    A number; 0, with gradient 0, for one query.

  Example:
    >>> print(f'{pooling_penalty(jnp.array([[1.0, 0.0], [2.0, 0.0]])):.4f}')
    1.4142
  """
  queries = unit_length(jnp.asarray(queries))
  cosines = queries @ queries.T
  square = jnp.sum(jnp.square(cosines - jnp.diag(jnp.diag(cosines))))
  # The root has no gradient at 0, where one query or orthogonal ones are.
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, kernel_init=_normal, name=name)
