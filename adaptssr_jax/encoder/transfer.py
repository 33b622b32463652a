"""Transfers a pre-trained item table to another vocabulary."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def map_item_rows(
  pretrained: Float[Array, 'old_rows dim'],
  fresh: Float[Array, 'new_rows dim'],
  pretrained_items: Sequence[str],
  items: Sequence[str],
) -> tuple[Float[Array, 'new_rows dim'], int]:
  """Copies the rows of items that the pre-trained table also has.

  The first and the last row, of padding and mask, are copied too.

  Args:
    pretrained: table of the pre-trained encoder, [items + 2, dim].
    fresh: new table, whose rows stay where an item is unknown.
    pretrained_items: raw item ids of the pre-trained table, item i at i - 1.
    items: raw item ids of the new table.

  Returns:
    The table for `items`, and how many of them were found.

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
  row = {name: number for number, name in enumerate(pretrained_items, 1)}
  rows = np.array(
    [0, *(row.get(name, -1) for name in items), len(pretrained) - 1]
  )
  known = rows >= 0
  table = jnp.where(known[:, None], pretrained[rows], fresh)
  return table, int(known.sum()) - 2
