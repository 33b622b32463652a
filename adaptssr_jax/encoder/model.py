"""The user encoder, and the head for fine-tuning."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, UInt32

from adaptssr_jax.encoder.dropout import dropout, row_seeds
from adaptssr_jax.encoder.layers import (
  AttentionPooling,
  Block,
  Dense,
  LayerNorm,
  Seeds,
  States,
  Users,
  last_states,
  normal,
)
from adaptssr_jax.ops.rows import take_rows

Items = Int[ArrayLike, 'batch length']
Keys = Key[Array, 'batch']
RowSeeds = UInt32[Array, 'batch dropouts 2']
READOUTS = ('pooled', 'last', 'pooled,last')


class UserEncoder(nn.Module):
  """A small Transformer that encodes a user's items into one vector.

  h = blocks(dropout(LayerNorm(E[items] + P)));  u = concat_k pool(q_k, h)

  Attention is bidirectional, as in BERT, unless `causal`. `readout` can replace
  the pooled vector by the state of the last item, or append that state.

  Ids are 0 for padding (at the end of a sequence), 1..num_items, and
  `mask_id` = num_items + 1. A sequence without items is encoded as zeros. An id
  outside of the table gives nan. Matrices and embeddings start as N(0, 0.02).

  Attributes:
    num_items: Number of items, without padding and mask.
    max_length: Largest sequence length; shorter arrays are accepted.
    embed_dim: Size of item embeddings and hidden states.
    num_layers: Number of Transformer blocks.
    num_heads: Number of attention heads, a divisor of `embed_dim`.
    num_queries: Number of learned queries, each of which pools the states.
    cosine_pooling: Weight states by the cosine, not the dot product, with the
      query.
    dropout_rate: In [0, 1); rounded to a multiple of 1/256, see `dropout`.
    dtype: Dtype of the computation, 'float32' or 'bfloat16'. Parameters, norms,
      softmaxes and user vectors are always float32.
    causal: A state attends to items up to its own only.
    readout: The user vector: 'pooled'; 'last', the state of the last item; or
      'pooled,last', both concatenated.

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
  dtype: str = 'float32'
  causal: bool = False
  readout: str = 'pooled'

  def __post_init__(self):
    sizes = 'num_items max_length embed_dim num_layers num_heads num_queries'
    for name in sizes.split():
      size = getattr(self, name)
      if size < 1:
        raise ValueError(f'{name} must be at least 1, not {size}')
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f'num_heads must divide embed_dim: {self.embed_dim} features do not '
        f'split into {self.num_heads} heads'
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f'dropout_rate must be in [0, 1), not {self.dropout_rate}'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(
        f"dtype must be 'float32' or 'bfloat16', not {self.dtype!r}"
      )
    if self.readout not in READOUTS:
      raise ValueError(
        f'readout must be {" or ".join(READOUTS)}, not {self.readout!r}'
      )
    super().__post_init__()

  def setup(self) -> None:
    """Declares the parameters and submodules, by their names in `params`."""
    # A model may keep its item table elsewhere and pass its rows as `embedded`.
    if self.is_initializing() or self.has_variable('params', 'item_embedding'):
      self.item_embedding = self.param(
        'item_embedding', normal, (self.num_items + 2, self.embed_dim)
      )
    self.position_embedding = self.param(
      'position_embedding', normal, (self.max_length, self.embed_dim)
    )
    self.norm = LayerNorm(dtype=self.dtype)
    self.blocks = [
      Block(self.num_heads, self.dropout_rate, self.dtype, self.causal)
      for _ in range(self.num_layers)
    ]
    self.pooling = AttentionPooling(self.num_queries, self.cosine_pooling)

  @property
  def mask_id(self) -> int:
    """The id of a masked item: num_items + 1."""
    return self.num_items + 1

  @property
  def vector_dim(self) -> int:
    """Size of a user vector."""
    parts = {'pooled': self.num_queries, 'last': 1}
    return self.embed_dim * sum(parts[part] for part in self._parts)

  @property
  def num_dropouts(self) -> int:
    """Number of dropouts, and so of dropout seeds per user."""
    return 1 + 3 * self.num_layers

  @property
  def _parts(self) -> list[str]:
    return self.readout.split(',')

  def __call__(
    self,
    items: Items,
    *,
    deterministic: bool = True,
    keys: Keys | None = None,
    seeds: RowSeeds | None = None,
    embedded: States | None = None,
  ) -> Users:
    """Encodes users.

    Args:
      items: `[batch, length]`, ids, 0 at the end for padding.
      deterministic: False applies dropout; then pass `keys`, or
        `rngs={'dropout': key}` to `apply`.
      keys: `[batch]`, one dropout key per user; the dropout of a user depends
        only on its key.
      seeds: `[batch, num_dropouts, 2]`, the result of `row_seeds` on `keys`,
        instead of `keys`: for callers that encode a batch in several parts.
      embedded: `[batch, length, embed_dim]`, the embeddings of the items, for
        models whose item table is not in the encoder.

    Returns:
      `[batch, vector_dim]`, not normalised.
    """
    hidden = self.hidden_states(
      items,
      deterministic=deterministic,
      keys=keys,
      seeds=seeds,
      embedded=embedded,
    )
    where = jnp.asarray(items) != 0
    # Both, so that the parameters do not depend on the readout. Compilation
    # removes the vector that is not used.
    vectors = {
      'pooled': self.pooling(hidden, where=where),
      'last': last_states(hidden, where=where),
    }
    return jnp.concatenate([vectors[part] for part in self._parts], axis=1)

  def hidden_states(
    self,
    items: Items,
    *,
    deterministic: bool = True,
    keys: Keys | None = None,
    seeds: RowSeeds | None = None,
    embedded: States | None = None,
  ) -> States:
    """Computes a contextual state for each item of each user.

    The arguments are those of `__call__`.

    Returns:
      `[batch, length, embed_dim]`; states at padding are meaningless.

    Raises:
      ValueError: If `items` is not `[batch, length]` with `length` in
        1..max_length.
    """
    items = jnp.asarray(items)
    if items.ndim != 2:
      raise ValueError(
        f'items must be [batch, length], not {items.shape}: one user is '
        'items[None]'
      )
    length = items.shape[1]
    if not 1 <= length <= self.max_length:
      raise ValueError(
        f'a sequence of {length} items, but max_length is {self.max_length}: '
        'shorten the sequences or make the encoder longer'
      )
    first, *others = self._seeds(items, deterministic, keys, seeds)
    if embedded is None:
      embedded = take_rows(self.item_embedding, items)
    hidden = self.norm(embedded + self.position_embedding[None, :length])
    hidden = dropout(first, hidden, rate=self.dropout_rate)
    for i, block in enumerate(self.blocks):
      hidden = block(
        hidden, where=items != 0, seeds=others[3 * i : 3 * (i + 1)]
      )
    return hidden

  def _seeds(
    self,
    items: Items,
    deterministic: bool,
    keys: Keys | None,
    seeds: RowSeeds | None,
  ) -> Sequence[Seeds]:
    """Seeds of the embeddings' dropout, then of the three of each block."""
    if deterministic or self.dropout_rate == 0:
      return [None] * self.num_dropouts
    if seeds is None:
      if keys is None:
        keys = jax.random.split(self.make_rng('dropout'), items.shape[0])
      seeds = row_seeds(keys, draws=self.num_dropouts)
    return list(jnp.moveaxis(seeds, 1, 0))


class TaskHead(nn.Module):
  """A head on user vectors for fine-tuning: W relu(W' u), or W u.

  Attributes:
    num_outputs: Number of classes, or of targets to rank.
    hidden_dim: Size of the hidden layer; 0 makes the head one linear layer.

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
    hidden = jnp.asarray(users)
    if self.hidden_dim:
      hidden = nn.relu(Dense(self.hidden_dim, name='hidden')(hidden))
    return Dense(self.num_outputs, name='output')(hidden)
