"""Files of PyTorch, by hand, since CI does not install it.

  pip install '.[torch]' && pytest tests/with_torch.py

With ADAPTSSR_CHECKOUT, a checkout of github.com/yflyl613/AdaptSSR, its own
modules load what is written, too.
"""

import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from test_convert import load

from experiments import convert
from experiments.flags.binder import SettingsError

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
  with pytest.raises(SettingsError, match=r'--output=.*m\.pt was not written'):
    convert.main(settings)
