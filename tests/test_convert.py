"""Encoders from state dicts of the public PyTorch code."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptssr_jax.encoder.convert import encoder_from_reference
from adaptssr_jax.encoder.model import UserEncoder
from tests.bounds import assert_same_to_rounding

GOLDEN = pathlib.Path(__file__).parent / 'golden'
SETTINGS = {
  'encoder_k1': {'num_heads': 2},
  'encoder_k4_cos': {'num_heads': 4, 'cosine_pooling': True},
  'mlm': {'num_heads': 2},
}


def load(name):
  with np.load(GOLDEN / f'{name}.npz') as file:
    arrays = dict(file)
  weights = {k.removeprefix('w/'): v for k, v in arrays.items() if 'w/' in k}
  return arrays, weights


@pytest.mark.parametrize('name', ['encoder_k1', 'encoder_k4_cos'])
def test_encoder_equals_the_public_code(name):
  golden, weights = load(name)
  encoder, params = encoder_from_reference(weights, **SETTINGS[name])
  items = golden['ids'].astype(np.int32)

  @jax.jit
  def encode(params):
    hidden = encoder.apply({'params': params}, items, method='hidden_states')
    return hidden, encoder.apply({'params': params}, items)

  hidden, users = encode(params)
  assert_same_to_rounding(users, golden['user'])
  real = golden['ids'] != 0
  assert real.sum(axis=-1).tolist() == [1, 2, 20, 10, 19, 3]
  assert_same_to_rounding(hidden[real], golden['hidden'][real])


def test_masked_item_loss_equals_the_public_code():
  golden, weights = load('mlm')
  encoder, params = encoder_from_reference(weights, **SETTINGS['mlm'])
  masked, ids = golden['masked'], golden['ids']
  items = np.where(masked, encoder.mask_id, ids)

  @jax.jit
  def compute_loss(params):
    hidden = encoder.apply({'params': params}, items, method='hidden_states')
    # In the public code, the classes are the ids 0..49; the last row of the
    # table is the mask.
    table = params['item_embedding'][: encoder.mask_id]
    logits = hidden[masked] @ table.T + weights['mlm_head.bias'][None]
    log_probs = jax.nn.log_softmax(logits)
    return -log_probs[np.arange(masked.sum()), ids[masked]].mean()

  np.testing.assert_allclose(
    compute_loss(params), golden['loss'], rtol=0, atol=1e-5
  )


def test_encoder_is_inferred_from_shapes():
  _, weights = load('encoder_k4_cos')
  encoder, params = encoder_from_reference(
    weights, num_heads=4, cosine_pooling=True
  )
  assert encoder == UserEncoder(
    num_items=49,
    max_length=20,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_queries=4,
    cosine_pooling=True,
  )
  np.testing.assert_array_equal(
    params['item_embedding'][encoder.mask_id], weights['mask_token'][0]
  )
  expected = jax.eval_shape(
    encoder.init, jax.random.key(0), jnp.ones((1, 1), jnp.int32)
  )['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'mask_token': None}, '^missing weights: mask_token$'),
    (
      {'base_model.pooler.query': None, 'base_model.layer_norm.bias': None},
      'missing weights: base_model.layer_norm.bias, base_model.pooler.query',
    ),
    ({'age.bias': np.ones(3)}, '^unknown weights: age.bias$'),
    (
      {'base_model.trm_encoder.layers.7.ffn.dense_1.bias': np.ones(3)},
      'missing weights: .*layers.2.ffn.*; unknown weights: .*layers.7.ffn',
    ),
    ({'mask_token': np.full((1, 64), np.nan)}, '^mask_token has .* not finite'),
    ({'mask_token': np.ones((1, 7))}, r'mask_token is \(1, 7\), not \(1, 64\)'),
    (
      {'base_model.trm_encoder.layers.1.ffn.dense_1.weight': np.ones((64, 9))},
      r'layers.1.ffn.dense_1.weight is \(64, 9\), not \(256, 64\)',
    ),
  ],
)
def test_other_weights_are_refused_by_name(change, message):
  _, weights = load('encoder_k1')
  weights = {k: v for k, v in (weights | change).items() if v is not None}
  with pytest.raises(ValueError, match=message):
    encoder_from_reference(weights, num_heads=2)


def test_no_weights_at_all():
  with pytest.raises(ValueError, match=r'missing weights: .*layers\.0\.ffn'):
    encoder_from_reference({}, num_heads=2)
