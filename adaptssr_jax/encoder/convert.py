"""Parameters from elsewhere: of the public code, or of another vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from adaptssr_jax.encoder.model import UserEncoder

_ITEMS = 'base_model.item_embedding.weight'
_MASK = 'mask_token'
_POSITIONS = 'base_model.pos_embedding.weight'
_QUERY = 'base_model.pooler.query'
_LAYERS = 'base_model.trm_encoder.layers.'

# Name within a layer of the public code -> path within a block of ours.
_DENSE = {
  'self_attn.WQ': 'attention/query',
  'self_attn.WK': 'attention/key',
  'self_attn.WV': 'attention/value',
  'self_attn.WO': 'attention/output',
  'ffn.dense_1': 'expand',
  'ffn.dense_2': 'contract',
}
_NORMS = {
  'self_attn.layer_norm': 'attention_norm',
  'ffn.layer_norm': 'feed_forward_norm',
}


def encoder_from_reference(
  weights: Mapping[str, Any], *, num_heads: int, cosine_pooling: bool = False
) -> tuple[UserEncoder, dict[str, Any]]:
  """Turns weights of the public PyTorch code into an encoder of ours.

  The mask vector becomes the last row of the item table; matrices are
  transposed; weights of the masked-item head (`mlm_head.*`) are left out. All
  sizes follow from shapes, except for what the arguments say.

  Args:
    weights: {parameter name in the PyTorch state dict: numpy array}, that is,
      {name: tensor.numpy() for name, tensor in state_dict.items()}.
    num_heads: Attention heads.
    cosine_pooling: The `cos_pooling` of the public code.

  Returns:
    The encoder, with the default dropout rate, and its params, for
    `encoder.apply({'params': params}, items)`.

  Raises:
    ValueError: If weights are missing, unknown or misshapen; it names them.

  Example:
    >>> encoder_from_reference({'mask_token': np.ones((1, 8))}, num_heads=2)
    Traceback (most recent call last):
    ValueError: missing weights: base_model.item_embedding.weight, ...

  Reference:
    https://github.com/yflyl613/AdaptSSR, Code/models/BERT4Rec.py.
  """
  layers = {name.split('.')[3] for name in weights if name.startswith(_LAYERS)}
  # Without any layer, the first one's names are those that are missing.
  num_layers = max(len(layers), 1)
  paths = _paths(num_layers)
  _check_names(weights, {*paths, _MASK})
  rows, embed_dim = np.shape(weights[_ITEMS])
  encoder = UserEncoder(
    num_items=rows - 1,
    max_length=len(weights[_POSITIONS]),
    embed_dim=embed_dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_queries=len(weights[_QUERY]),
    cosine_pooling=cosine_pooling,
  )
  _check_shapes(weights, _expected_shapes(encoder, paths))
  arrays = {name: np.asarray(weights[name], np.float32) for name in weights}
  arrays[_ITEMS] = np.concatenate([arrays[_ITEMS], arrays[_MASK]])
  flat = {
    path: jnp.asarray(arrays[name].T if _is_matrix(path) else arrays[name])
    for name, path in paths.items()
  }
  return encoder, traverse_util.unflatten_dict(flat, sep='/')


def _paths(num_layers: int) -> dict[str, str]:
  """Returns {name in the state dict: path in `params`}, but for the mask."""
  dense = {}
  norms = {'base_model.layer_norm': 'norm'}
  for layer in range(num_layers):
    old, new = f'{_LAYERS}{layer}', f'blocks_{layer}'
    dense |= {f'{old}.{name}': f'{new}/{path}' for name, path in _DENSE.items()}
    norms |= {f'{old}.{name}': f'{new}/{path}' for name, path in _NORMS.items()}
  return (
    {_ITEMS: 'item_embedding', _POSITIONS: 'position_embedding'}
    | {_QUERY: 'pooling/query'}
    | {f'{name}.weight': f'{path}/kernel' for name, path in dense.items()}
    | {f'{name}.weight': f'{path}/scale' for name, path in norms.items()}
    | {f'{k}.bias': f'{path}/bias' for k, path in (dense | norms).items()}
  )


def _is_matrix(path: str) -> bool:
  # PyTorch keeps a layer's matrix as [out, in], Flax as [in, out].
  return path.endswith('/kernel')


def _expected_shapes(
  encoder: UserEncoder, paths: dict[str, str]
) -> dict[str, tuple[int, ...]]:
  items = jnp.zeros((1, 1), jnp.int32)
  variables = jax.eval_shape(encoder.init, jax.random.key(0), items)
  flat = traverse_util.flatten_dict(variables['params'], sep='/')
  shapes = {
    name: flat[path].shape[:: -1 if _is_matrix(path) else 1]
    for name, path in paths.items()
  }
  # The table's last row is a parameter of its own there.
  rows, embed_dim = shapes[_ITEMS]
  return shapes | {_ITEMS: (rows - 1, embed_dim), _MASK: (1, embed_dim)}


def _check_names(weights: Mapping[str, Any], expected: set[str]) -> None:
  known = {name for name in weights if not name.startswith('mlm_head.')}
  problems = {'missing': expected - known, 'unknown': known - expected}
  text = '; '.join(
    f'{problem} weights: {", ".join(sorted(names))}'
    for problem, names in problems.items()
    if names
  )
  if text:
    raise ValueError(text)


def _check_shapes(
  weights: Mapping[str, Any], expected: dict[str, tuple[int, ...]]
) -> None:
  wrong = [
    f'{name} is {np.shape(weights[name])}, not {shape}'
    for name, shape in expected.items()
    if np.shape(weights[name]) != shape
  ]
  if wrong:
    raise ValueError(f'weights of a wrong shape: {", ".join(wrong)}')


def map_item_rows(
  pretrained: Float[Array, 'old_rows dim'],
  fresh: Float[Array, 'new_rows dim'],
  pretrained_items: Sequence[str],
  items: Sequence[str],
) -> tuple[Float[Array, 'new_rows dim'], int]:
  """Takes over the row of every item that the pre-trained table knows.

  The rows of padding and mask, the first and the last, are taken over too.

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
