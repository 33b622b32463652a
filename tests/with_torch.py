"""Tests with PyTorch, which CI does not install; run them by hand.

  pip install '.[torch]' && pytest tests/with_torch.py

With ADAPTSSR_CHECKOUT, a checkout of github.com/yflyl613/AdaptSSR, its own
modules load the written files, too.
"""

import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params
from test_convert import load

from adaptssr_jax import losses
from adaptssr_jax.encoder.model import UserEncoder
from adaptssr_jax.objectives.ptum import candidate_losses
from adaptssr_jax.ops.item_softmax import softmax_losses_and_best
from adaptssr_jax.ops.sampled_softmax import distinct
from experiments import convert
from experiments.flags.binder import SettingsError
from experiments.flags.objectives import TRAITS

MODELS = {
  'AdaptSSR': ('encoder_k4_cos', 'AdaptSSR.model', 'PretrainModel'),
  'MLM': ('mlm', 'MLM.model', 'PretrainModel'),
  'tuned': ('finetuned', 'classification_model', 'FinetuneModel'),
}
STRICT = """
import argparse, importlib, sys
import torch
path, module, name, *sizes = sys.argv[1:]
dim, length, heads, queries, items, labels = map(int, sizes)
args = argparse.Namespace(
  base_model='BERT4Rec', pooling='attn', trm_dropout=0.1, n_layers=2,
  cos_pooling=False, reg_coef=1, pretrain_method='MLM', emb_dim=dim,
  max_len=length, n_heads=heads, num_pooling=queries, n_items=items,
  n_labels=labels,
)
model = getattr(importlib.import_module(module), name)(args, 'cpu')
print(model.load_state_dict(torch.load(path), strict=True))
"""


@pytest.fixture(name='torch')
def pytorch():
  """Not at the top: where doctests are looked for, this file is imported."""
  import torch

  return torch


def save(torch, path, name):
  _, weights = load(name)
  torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, path)
  return weights


@pytest.mark.parametrize('model', MODELS)
def test_there_and_back(torch, tmp_path, model):
  name, module, public = MODELS[model]
  weights = save(torch, tmp_path / 'model.pt', name)
  run, back = str(tmp_path / 'run'), tmp_path / 'back.pt'
  convert.main(
    convert.ConvertSettings(input=str(tmp_path / 'model.pt'), workdir=run)
  )
  convert.main(convert.ConvertSettings(input=run, output=str(back)))
  found = torch.load(back, weights_only=True)
  assert found.keys() == weights.keys()
  for key, array in weights.items():
    np.testing.assert_array_equal(found[key].numpy(), array)
  checkout = os.environ.get('ADAPTSSR_CHECKOUT')
  if checkout:
    weights = {k.split('base_model.')[-1]: v for k, v in weights.items()}
    items, dim = weights['item_embedding.weight'].shape
    length, queries = (
      len(weights[name]) for name in ('pos_embedding.weight', 'pooler.query')
    )
    words = [back, module, public, dim, length, 2, queries, items, 5]
    done = subprocess.run(
      [sys.executable, '-c', STRICT, *map(str, words)],
      cwd=pathlib.Path(checkout) / 'Code',
      capture_output=True,
      text=True,
    )
    assert done.stdout == '<All keys matched successfully>\n', done.stderr


class Code:
  def __reduce__(self):
    return print, ('this was run',)


@pytest.mark.parametrize('kind', ['code', 'module', 'text', 'cut', 'number'])
def test_what_is_no_state_dict_is_refused(torch, tmp_path, capsys, kind):
  path = tmp_path / 'model.pt'
  save(torch, path, 'mlm')
  if kind == 'cut':
    path.write_bytes(path.read_bytes()[:9999])
  elif kind == 'text':
    path.write_text('a text')
  elif kind == 'code':
    path.write_bytes(pickle.dumps({'a': Code()}))
  elif kind == 'module':
    torch.save(torch.nn.Linear(2, 2), path)
  else:
    torch.save({'epoch': 3}, path)
  settings = convert.ConvertSettings(
    input=str(path), workdir=str(tmp_path / 'run')
  )
  with pytest.raises(SettingsError, match=r'model\.pt is damaged, or holds'):
    convert.main(settings)
  assert 'this was run' not in capsys.readouterr().out
  assert not (tmp_path / 'run').exists()


def test_a_folder_that_is_not_there(torch, tmp_path):
  save(torch, tmp_path / 'model.pt', 'encoder_k4_cos')
  run = str(tmp_path / 'run')
  convert.main(
    convert.ConvertSettings(input=str(tmp_path / 'model.pt'), workdir=run)
  )
  settings = convert.ConvertSettings(input=run, output=f'{tmp_path}/no/m.pt')
  with pytest.raises(
    SettingsError, match=r'--output=.*m\.pt: there is no folder'
  ):
    convert.main(settings)


def drawn(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def assert_same(theirs, ours):
  np.testing.assert_allclose(
    theirs.detach().numpy(), ours, rtol=1e-5, atol=1e-6
  )


def test_losses_of_vectors_are_ours(torch):
  from experiments.benchmarking.pytorch import losses as plain

  users = drawn(2, 2, 9, 8)
  views = torch.from_numpy(users)
  assert_same(plain.adaptssr_loss(views), losses.adaptssr_loss(users))
  assert_same(plain.coles_loss(views[0]), losses.coles_loss(users[0]))
  assert_same(
    plain.nt_xent_loss(views[0]),
    losses.nt_xent_loss(users[0], similarity='dot'),
  )
  assert_same(
    plain.nt_xent_loss(plain.unit(views[0]), 0.1),
    losses.nt_xent_loss(users[0], temperature=0.1),
  )


def test_losses_of_items_are_ours(torch):
  from experiments.benchmarking.pytorch import losses as plain

  hidden, table, bias = drawn(4, 8), drawn(11, 8), drawn(11)
  items = np.array([[5, 3, 5, 0], [10, 10, 10, 10], [1, 0, 0, 0], [2, 1, 7, 1]])
  scores = torch.from_numpy(hidden @ table.T + bias)
  where = jnp.asarray(items) != 0
  without_padding = jnp.asarray(bias).at[0].set(-1e30)
  for repeats in (False, True):
    ours, _ = softmax_losses_and_best(
      hidden,
      table,
      without_padding,
      items,
      where=where if repeats else distinct(jnp.asarray(items)),
    )
    found = plain.set_loss(scores[:, 1:], torch.from_numpy(items), repeats)
    assert_same(found, ours.mean())
  ours, _ = softmax_losses_and_best(
    hidden, table, bias, items[:, :1], where=jnp.ones((4, 1), bool)
  )
  label = torch.from_numpy(items[:, 0])
  assert_same(torch.nn.functional.cross_entropy(scores, label), ours.mean())

  users, candidates = drawn(4, 3, 8), drawn(4, 3, 5, 8)
  is_label = drawn(4, 3, 4) > 1
  ours, _ = candidate_losses(
    *map(jnp.asarray, (candidates, users)), where=jnp.asarray(~is_label)
  )
  found = plain.candidates_loss(
    *map(torch.from_numpy, (users, candidates, is_label))
  )
  assert_same(found, ours[:, 0].mean() + ours[:, 1:].mean())


@pytest.mark.parametrize('causal', [False, True])
def test_the_encoder_is_ours(torch, causal):
  from experiments.benchmarking.pytorch.model import Encoder

  fields = dict(num_items=20, max_length=9, embed_dim=8, num_layers=2)
  fields |= dict(num_queries=3, cosine_pooling=True, causal=causal)
  encoder = UserEncoder(**fields)
  items = jnp.array([[3, 7, 7, 20, 1], [12, 2, 0, 0, 0]])
  params = random_params(encoder, items)
  peer = Encoder(fields | {'num_heads': 2, 'dropout_rate': 0.1}).eval()
  weights = {
    'items.weight': params['item_embedding'],
    'positions.weight': params['position_embedding'],
    'queries': params['pooling']['query'],
    **layer_of('norm', params['norm']),
  }
  for number in range(2):
    block, name = params[f'blocks_{number}'], f'blocks.layers.{number}'
    of = block['attention']
    three = jax.tree.map(
      lambda *x: jnp.concatenate(x, axis=-1),
      *(of[part] for part in ('query', 'key', 'value')),
    )
    weights |= {
      f'{name}.self_attn.in_proj_weight': three['kernel'].T,
      f'{name}.self_attn.in_proj_bias': three['bias'],
      **layer_of(f'{name}.self_attn.out_proj', of['output']),
      **layer_of(f'{name}.norm1', block['attention_norm']),
      **layer_of(f'{name}.linear1', block['expand']),
      **layer_of(f'{name}.linear2', block['contract']),
      **layer_of(f'{name}.norm2', block['feed_forward_norm']),
    }
  peer.load_state_dict(
    {name: torch.tensor(np.asarray(x)) for name, x in weights.items()}
  )
  found = peer(torch.tensor(np.asarray(items)))
  ours = encoder.apply({'params': params}, items)
  np.testing.assert_allclose(found.detach(), ours, rtol=1e-3, atol=1e-4)


def layer_of(name, params):
  weight = params['kernel'].T if 'kernel' in params else params['scale']
  return {f'{name}.weight': weight, f'{name}.bias': params['bias']}


@pytest.mark.parametrize('objective', TRAITS)
def test_plain_objectives_are_timed(torch, tmp_path, objective):
  from experiments.benchmarking.pytorch.objectives import main

  rng = np.random.default_rng(0)
  items = rng.integers(1, 21, (5, 16, 12))
  items *= np.arange(12) < rng.integers(6, 13, (5, 16, 1))
  arrays = {'items': items}
  if objective == 'duorec':
    arrays['partner_items'] = items[:, ::-1]
  if objective == 'coserec':
    arrays['similar'] = rng.integers(1, 21, (22, 2))
    arrays['similar'][0] = 0
  np.savez(tmp_path / 'arrays.npz', **arrays)
  fields = dict(num_items=20, max_length=12, embed_dim=8, num_layers=1)
  fields |= dict(num_heads=2, num_queries=2, cosine_pooling=False)
  fields |= dict(dropout_rate=0.1, causal=objective == 'causal_items')
  options = dict(objective=objective, arrays=str(tmp_path / 'arrays.npz'))
  options |= dict(encoder=fields, threads=1, learning_rate=1e-3, warm_up=2)
  options['cpu_time'] = True
  found = main(options)
  assert len(found['step_seconds']) == 3
  assert np.isfinite(found['loss'])
