"""Uses a pre-trained item table: for other items, and to rank targets."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key


def item_ids(
  names: Sequence[str], vocabulary: Sequence[str], *, unknown: int = 0
) -> Int[np.ndarray, ' names']:
  """The ids of items in a vocabulary, by raw id.

  Args:
    names: raw item ids.
    vocabulary: raw item ids, that of item i at i - 1.
    unknown: the id of items that are not in the vocabulary.

  Example:
    >>> item_ids(['b', 'x'], ['a', 'b']).tolist()
    [2, 0]
  """
  ids = {name: i for i, name in enumerate(vocabulary, 1)}
  return np.array([ids.get(name, unknown) for name in names], np.int32)


def map_item_rows(
  pretrained: Float[Array, 'old_rows dim'],
  fresh: Float[Array, 'new_rows dim'],
  pretrained_items: Sequence[str],
  items: Sequence[str],
) -> tuple[Float[Array, 'new_rows dim'], int]:
  """Copies the rows of known items from a pre-trained table into a new one.

  The first and the last row, of padding and mask, are also copied.

  Args:
    pretrained: table of the pre-trained encoder, [items + 2, dim].
    fresh: new table, whose rows are kept for unknown items.
    pretrained_items: raw item ids of the pre-trained table, item i at i - 1.
    items: raw item ids of the new table.

  Returns:
    The table for `items`, and the number of known items.

  Raises:
    ValueError: the tables differ in width, or do not fit their vocabularies.

  Example:
    >>> old = jnp.arange(4.0)[:, None]
    >>> table, found = map_item_rows(
    ...   old, jnp.full((5, 1), 9.0), ['a', 'b'], ['b', 'c', 'a']
    ... )
    >>> table[:, 0].tolist(), found
    ([0.0, 2.0, 9.0, 1.0, 3.0], 2)
  """
  for table, names in ((pretrained, pretrained_items), (fresh, items)):
    if len(table) != len(names) + 2:
      raise ValueError(
        f'a table of {len(table)} rows does not fit {len(names)} items: it '
        'needs two more, for padding and mask'
      )
  if pretrained.shape[1] != fresh.shape[1]:
    raise ValueError(
      f'the pre-trained table has {pretrained.shape[1]} features, the new one '
      f'{fresh.shape[1]}'
    )
  rows = item_ids(items, pretrained_items, unknown=-1)
  rows = np.array([0, *rows, len(pretrained) - 1])
  known = rows >= 0
  table = jnp.where(known[:, None], pretrained[rows], fresh)
  return table, int(known.sum()) - 2


def biases_of_targets(
  bias: Float[np.ndarray, ' ids'],
  targets: Sequence[str],
  items: Sequence[str],
) -> Float[np.ndarray, ' targets']:
  """The bias of the item that each target is; the smallest if it is not one.

  With a bias of 0, a new target would rank above all known ones, whose biases
  are near the logarithms of shares.

  Args:
    bias: biases of padding and items, by id.
    targets: raw ids of targets.
    items: raw ids of items, that of item i at i - 1.

  Example:
    >>> bias = np.array([0.0, -2.0, -1.0])
    >>> biases_of_targets(bias, ['b', 'x'], ['a', 'b']).tolist()
    [-1.0, -2.0]
  """
  ids = item_ids(targets, items)
  return np.where(ids > 0, bias[ids], bias[1:].min())


def mean_projection(
  features: int, embed_dim: int
) -> Float[Array, 'features embed']:
  """The matrix that maps a user vector to the mean of its parts.

  (I ... I) / parts, the identity for one part

  Args:
    features: size of a user vector, a multiple of `embed_dim`.
    embed_dim: size of an item embedding, and so of a part.

  Returns:
    `[features, embed_dim]`.

  Example:
    >>> mean_projection(4, 2).tolist()
    [[0.5, 0.0], [0.0, 0.5], [0.5, 0.0], [0.0, 0.5]]
  """
  parts = features // embed_dim
  return jnp.tile(jnp.eye(embed_dim) / parts, (parts, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class TiedTargets:
  """A head that scores targets by the item embeddings of the encoder.

  z_t = E[item of t] . (W u) + b_t

  W starts as `mean_projection`, the mean of the parts of u. So an encoder that
  was pre-trained to score items (pooled or causal items) can rank targets
  before it is fine-tuned. A target that is not an item of the data set has its
  own learned row.

  Attributes:
    items: the id of the item that each target is, 0 for none, [targets].

  Example:
    >>> head = TiedTargets(np.array([2, 0]))
    >>> params = head.init(jax.random.key(0), features=4, embed_dim=2)
    >>> params['projection'].tolist()
    [[0.5, 0.0], [0.0, 0.5], [0.5, 0.0], [0.0, 0.5]]
    >>> head.rows(jnp.ones((2, 2)), params | {'rows': jnp.zeros((1, 2))})
    Array([[1., 1.],
           [0., 0.]], dtype=float32)

  Reference:
    Press & Wolf, Using the Output Embedding to Improve Language Models, EACL
    2017; Inan et al., Tying Word Vectors and Word Classifiers, ICLR 2017.
  """

  items: Int[np.ndarray, ' targets']

  @property
  def num_outputs(self) -> int:
    """The number of targets."""
    return len(self.items)

  def init(
    self,
    key: Key[Array, ''],
    *,
    features: int,
    embed_dim: int,
    bias: Float[np.ndarray, ' targets'] | None = None,
    projection: Float[ArrayLike, 'features embed'] | None = None,
  ) -> dict[str, Array]:
    """The parameters before fine-tuning.

    Args:
      key: draws the rows of targets that are not items, N(0, 0.02).
      features: size of a user vector, a multiple of `embed_dim`.
      embed_dim: size of an item embedding.
      bias: initial biases; None: zeros.
      projection: W, if pre-training learned it; None: `mean_projection`.

    Returns:
      `projection` W, `bias` b, and `rows` if some targets are not items.
    """
    if projection is None:
      projection = mean_projection(features, embed_dim)
    bias = np.zeros(self.num_outputs) if bias is None else bias
    params = {
      'projection': jnp.asarray(projection),
      'bias': jnp.asarray(bias, jnp.float32),
    }
    others = int((self.items == 0).sum())
    # A checkpoint cannot hold an empty array.
    if others:
      rows = jax.random.normal(key, (others, embed_dim))
      params['rows'] = 0.02 * rows
    return params

  def rows(
    self, items: Float[Array, 'targets dim'], params: Mapping[str, Any]
  ) -> Float[Array, 'targets dim']:
    """The row of each target: that of its item, or its own learned row.

    Args:
      items: the embedding of the item of each target; ignored for targets that
        are not items.
      params: the parameters of the head.
    """
    (others,) = np.nonzero(self.items == 0)
    return items.at[others].set(params['rows']) if len(others) else items
