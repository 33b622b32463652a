"""Converts weights between this encoder and the public PyTorch code."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adaptssr_jax.encoder.model import TaskHead, UserEncoder

_ITEMS = 'base_model.item_embedding.weight'
_MASK = 'mask_token'
_POSITIONS = 'base_model.pos_embedding.weight'
_QUERY = 'base_model.pooler.query'
_LAYERS = 'base_model.trm_encoder.layers.'
# The prefix that fine-tuning in the public code adds to the names.
_TUNED = 'base_model.'
# A copy of the item table, to which the masked-item head is tied.
_DECODER = 'mlm_head.decoder_weight'
_MASKED_ITEMS = {'mlm_head.bias': 'head/bias'}
_TASK = {
  'classifier.0.weight': 'head/hidden/kernel',
  'classifier.0.bias': 'head/hidden/bias',
  'classifier.2.weight': 'head/output/kernel',
  'classifier.2.bias': 'head/output/bias',
}
# By the prefix of their names.
_HEADS = {'mlm_head.': _MASKED_ITEMS, 'classifier.': _TASK}

# Name within a layer of the public code -> path within `Block`.
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
  """Converts weights of the public PyTorch code into a `UserEncoder`.

  The mask vector becomes the last row of the item table; matrices are
  transposed; heads are left out, see `model_from_reference`. All sizes follow
  from the shapes of the weights.

  Args:
    weights: The PyTorch state dict as NumPy arrays, {name: tensor.numpy() for
      name, tensor in state_dict.items()}, of a model pre-trained by AdaptSSR or
      masked items, or of a model fine-tuned from one.
    num_heads: Number of attention heads.
    cosine_pooling: The `cos_pooling` of the public code.

  Returns:
    The encoder, with the default dropout rate, and its params, for
    `encoder.apply({'params': params}, items)`.

  Raises:
    ValueError: If weights are missing, unknown, or of a wrong shape; the
      message names them.

  Example:
    >>> encoder_from_reference({'mask_token': np.ones((1, 8))}, num_heads=2)
    Traceback (most recent call last):
    ValueError: missing weights: base_model.item_embedding.weight, ...

  Reference:
    https://github.com/yflyl613/AdaptSSR, Code/models/BERT4Rec.py.
  """
  encoder, params, _ = model_from_reference(
    weights, num_heads=num_heads, cosine_pooling=cosine_pooling
  )
  return encoder, params


def model_from_reference(
  weights: Mapping[str, Any], *, num_heads: int, cosine_pooling: bool = False
) -> tuple[UserEncoder, dict[str, Any], dict[str, Any]]:
  """Converts weights of the public PyTorch code into an encoder and heads.

  The arguments and errors are those of `encoder_from_reference`.

  Returns:
    The encoder and its params, like `encoder_from_reference`; and the params of
    heads: `bias`, one number per id, of masked items, and `hidden` and
    `output`, of the `TaskHead` of a fine-tuned model.

  Reference:
    https://github.com/yflyl613/AdaptSSR, Code/models/BERT4Rec.py,
    Code/MLM/model.py, Code/classification_model.py and Code/topN_model.py.
  """
  # Fine-tuning puts a prefix before the names.
  if any(name.startswith(2 * _TUNED) for name in weights):
    weights = {name.removeprefix(_TUNED): x for name, x in weights.items()}
  layers = {name.split('.')[3] for name in weights if name.startswith(_LAYERS)}
  # If there is no layer, the error names the weights of the first one.
  num_layers = max(len(layers), 1)
  paths = _paths(num_layers)
  for prefix, head in _HEADS.items():
    if any(name.startswith(prefix) for name in weights):
      paths |= head
  _check_names(weights, {*paths, _MASK})
  _check_matrices(weights)
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
  arrays = {name: np.asarray(weights[name], np.float32) for name in weights}
  _check_arrays(arrays, _expected_shapes(encoder, paths, weights))
  arrays[_ITEMS] = np.concatenate([arrays[_ITEMS], arrays[_MASK]])
  flat = {
    path: jnp.asarray(arrays[name].T if _is_matrix(path) else arrays[name])
    for name, path in paths.items()
  }
  params = traverse_util.unflatten_dict(flat, sep='/')
  head = params.pop('head', {})
  return encoder, params, head


def model_to_reference(
  encoder: UserEncoder,
  params: Mapping[str, Any],
  head: Mapping[str, Any],
) -> dict[str, np.ndarray]:
  """The inverse of `model_from_reference`.

  Args:
    encoder: The encoder; not causal, and with the `readout` 'pooled'.
    params: Its parameters, including the item table.
    head: The params of heads that `model_from_reference` returns, all, some or
      none of them.

  Returns:
    The state dict {name: float32 array} of the public `PretrainModel`, with the
    head of masked items if `head` has `bias`, or without. If `head` has
    `output`, it is the state dict of a `FinetuneModel` around that model.

  Raises:
    ValueError: If the encoder is causal, or its `readout` is not 'pooled'.
  """
  if encoder.causal or encoder.readout != 'pooled':
    raise ValueError(
      f'an encoder with causal={encoder.causal} and readout={encoder.readout} '
      'has no counterpart in the public code, which pools bidirectional states'
    )
  flat = traverse_util.flatten_dict({**params, 'head': head}, sep='/')
  paths = _paths(encoder.num_layers) | {
    name: path for name, path in (_MASKED_ITEMS | _TASK).items() if path in flat
  }
  arrays = {name: np.asarray(flat[path]) for name, path in paths.items()}
  table = arrays[_ITEMS]
  arrays |= {_ITEMS: table[:-1], _MASK: table[-1:]}
  if 'bias' in head:
    arrays[_DECODER] = arrays[_ITEMS]
  prefix = _TUNED if 'output' in head else ''
  return {
    name if name in _TASK else prefix + name: np.array(
      array.T if _is_matrix(paths.get(name, '')) else array,
      np.float32,
      order='C',
    )
    for name, array in arrays.items()
  }


def _paths(num_layers: int) -> dict[str, str]:
  """Returns {name in the state dict: path in `params`}, without the mask."""
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
  # PyTorch stores the matrix of a layer as [out, in], Flax as [in, out].
  return path.endswith('/kernel')


def _expected_shapes(
  encoder: UserEncoder, paths: dict[str, str], weights: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
  items, key = jnp.zeros((1, 1), jnp.int32), jax.random.key(0)
  params = jax.eval_shape(encoder.init, key, items)['params']
  head = {'bias': jax.ShapeDtypeStruct((encoder.mask_id,), jnp.float32)}
  if _TASK.keys() <= paths.keys():
    hidden, outputs = (len(weights[f'classifier.{n}.weight']) for n in (0, 2))
    task = TaskHead(num_outputs=outputs, hidden_dim=hidden)
    users = jnp.zeros((1, encoder.vector_dim))
    head |= jax.eval_shape(task.init, key, users)['params']
  flat = traverse_util.flatten_dict({**params, 'head': head}, sep='/')
  shapes = {
    name: flat[path].shape[:: -1 if _is_matrix(path) else 1]
    for name, path in paths.items()
  }
  # In the public code, the last row of the table is a separate parameter.
  rows, embed_dim = shapes[_ITEMS]
  return shapes | {_ITEMS: (rows - 1, embed_dim), _MASK: (1, embed_dim)}


def _check_names(weights: Mapping[str, Any], expected: set[str]) -> None:
  known = weights.keys() - {_DECODER}
  problems = {'missing': expected - known, 'unknown': known - expected}
  text = '; '.join(
    f'{problem} weights: {", ".join(sorted(names))}'
    for problem, names in problems.items()
    if names
  )
  if text:
    raise ValueError(text)


def _check_arrays(
  arrays: Mapping[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> None:
  """Checks shapes, that values are finite, and that tied weights are equal."""
  wrong = [
    f'{name} is {arrays[name].shape}, not {shape}'
    for name, shape in shapes.items()
    if arrays[name].shape != shape
  ]
  if wrong:
    raise ValueError(f'weights of a wrong shape: {", ".join(wrong)}')
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise ValueError(f'{name} has values that are not finite')
  decoder = arrays.get(_DECODER, arrays[_ITEMS])
  if not np.array_equal(decoder, arrays[_ITEMS]):
    raise ValueError(
      f'{_DECODER} differs from {_ITEMS}, to which it must be tied'
    )


def _check_matrices(weights: Mapping[str, Any]) -> None:
  """Checks that the weights that define sizes are matrices."""
  for name in (_ITEMS, _POSITIONS, _QUERY, *_TASK):
    if name in weights and not name.endswith('bias'):
      shape = np.shape(weights[name])
      if len(shape) != 2:
        raise ValueError(f'{name} is {shape}, not a matrix')
