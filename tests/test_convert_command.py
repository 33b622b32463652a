"""Models of the public PyTorch code are converted into runs, and back.

The golden files contain state dicts of that code, so PyTorch is not needed; the
tests in with_torch.py use it.
"""

import pathlib
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_convert import load
from test_similarity_command import save_run

from adaptssr_jax.checkpoint.encoders import (
  restore_description,
  restore_model,
  save_model,
)
from adaptssr_jax.checkpoint.items import describe
from adaptssr_jax.encoder.model import TaskHead, UserEncoder
from adaptssr_jax.table.lookup import encoder_params, model_params
from experiments import convert, embed, export, finetune, pretrain
from experiments.flags.binder import SettingsError
from experiments.pretraining import step
from experiments.run.data import open_data
from tests.bounds import assert_same_to_rounding
from tests.random_params import drawn_params
from tests.tiny_runs import finetune_settings, pretrain_settings
from tests.user_table_files import COLUMNS, write

TUNED = {'num_heads': 4, 'cosine_pooling': True}


def write_golden(folder, name, **changes):
  golden, weights = load(name)
  weights = {k: v for k, v in (weights | changes).items() if v is not None}
  path = pathlib.Path(folder) / f'{name}.safetensors'
  safetensors.numpy.save_file(weights, path)
  return path, golden, weights


def to_run(path, folder, **changes):
  settings = convert.ConvertSettings(
    input=str(path), workdir=str(folder), **changes
  )
  return str(convert.main(settings))


def to_torch(run, path, **changes):
  settings = convert.ConvertSettings(input=run, output=str(path), **changes)
  return safetensors.numpy.load_file(convert.main(settings))


def assert_same_weights(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    ('encoder_k1', {}),
    ('encoder_k4_cos', {'num_heads': 4, 'cosine_pooling': True}),
    ('mlm', {}),
    ('finetuned', TUNED),
  ],
)
def test_there_and_back_not_a_bit_changes(tmp_path, name, settings):
  path, _, weights = write_golden(tmp_path, name)
  run = to_run(path, tmp_path / 'run', **settings)
  assert_same_weights(to_torch(run, tmp_path / 'b.safetensors'), weights)


def test_a_fine_tuned_model_gives_the_same_vectors_and_logits(tmp_path, capsys):
  path, golden, weights = write_golden(tmp_path, 'finetuned')
  run = to_run(path, tmp_path / 'run', **TUNED)
  assert capsys.readouterr().out.endswith(
    'run: an encoder of 29 items, 2 layers and 4 heads; its head: bias, '
    'hidden, output\n'
  )
  encoder, params, items = restore_model(run)
  assert items == [str(index) for index in range(1, 30)]
  head = {name: params['head'][name] for name in ('hidden', 'output')}

  @jax.jit
  def apply(learned, items):
    users = encoder.apply({'params': learned}, items)
    tuned = TaskHead(num_outputs=5, hidden_dim=16)
    return users, tuned.apply({'params': head}, users)

  users, logits = apply(encoder_params(params), golden['ids'].astype(np.int32))
  assert_same_to_rounding(users, golden['user'])
  assert_same_to_rounding(logits, golden['logits'])
  np.testing.assert_array_equal(
    params['table'][-1:], weights['base_model.mask_token']
  )
  assert restore_description(run).labels == ['0', '1', '2', '3', '4']


@pytest.mark.slow
def test_every_command_starts_from_it(tmp_path, data_dir, monkeypatch):
  """Also from its masked-item head, by the raw ids of the vocabulary."""
  items = tmp_path / 'items.txt'
  items.write_text(''.join(f'item_{index}\n' for index in range(1, 50)))
  path, _, weights = write_golden(tmp_path, 'mlm')
  run = to_run(path, tmp_path / 'run', vocabulary=str(items))
  events = [('u', 'item_3', 0), ('u', 'item_48', 1), ('u', 'new', 2)]
  table = write(tmp_path / 'e.parquet', events, COLUMNS)
  settings = embed.EmbedSettings(
    pretrained=run, output=f'{tmp_path}/u.npz', events=(str(table),)
  )
  with np.load(embed.main(settings)) as arrays:
    assert arrays['vector'].shape == (1, 64)
  # As a program it is lowered in the tests of export.
  monkeypatch.setattr('experiments.export.lowered', lambda *_: b'')
  export.main(
    export.ExportSettings(pretrained=run, output=f'{tmp_path}/deployed')
  )
  # The fields of the encoder are those of the run.
  fields = dict.fromkeys(('embed_dim', 'num_layers', 'max_length'))
  settings = pretrain_settings(
    tmp_path, data_dir, init_from=run, objective=('masked_items',), **fields
  )
  data = open_data(settings, 'pretrain')
  vocabulary, _ = data.vocabulary
  pretrain.check_source(settings)
  encoder, params = step.make_model(settings, data, jax.random.key(0))
  assert (encoder.embed_dim, encoder.num_layers) == (64, 2)
  for index in (1, 7, 48):
    at = 1 + vocabulary.index(f'item_{index}')
    assert params['head']['bias'][at] == weights['mlm_head.bias'][index]
  settings = finetune_settings(tmp_path, data_dir, pretrained=run)
  _, tuned = finetune.make_model(
    settings, open_data(settings, 'gender'), jax.random.key(0)
  )
  known = [1 + vocabulary.index(f'item_{index}') for index in range(1, 50)]
  found, expected = (np.asarray(tree['table']) for tree in (tuned, params))
  np.testing.assert_array_equal(found[known], expected[known])


def save_tuned(folder, **fields):
  """A run that was fine-tuned here, with a head of another width."""
  encoder = UserEncoder(num_items=3, max_length=4, embed_dim=8, **fields)
  head = {
    name: {'kernel': jnp.ones(shape), 'bias': jnp.ones(shape[1:])}
    for name, shape in (
      ('hidden', (encoder.vector_dim, 64)),
      ('output', (64, 2)),
    )
  }
  save_model(
    folder,
    model_params(drawn_params(encoder, 0)) | {'head': head},
    describe(encoder, ['a', 'b\u2028', 'c'], flags={'task': 'gender'}),
  )
  return str(folder)


def test_a_head_that_the_public_code_has_not_is_told(tmp_path, capsys):
  run = save_tuned(tmp_path / 'run')
  items = tmp_path / 'items.txt'
  weights = to_torch(run, tmp_path / 'm.safetensors', vocabulary=str(items))
  assert not any(name.startswith('classifier') for name in weights)
  told = capsys.readouterr().out
  assert 'since the public code has none: hidden, output\n' in told
  assert '--max_len=4 --n_layers=2 --n_heads=2 --num_pooling=1' in told
  # And the vocabulary comes back.
  other = to_run(tmp_path / 'm.safetensors', tmp_path / 'o', vocabulary=items)
  assert restore_model(other)[2] == ['a', 'b\u2028', 'c']


@pytest.mark.parametrize('fields', [{'causal': True}, {'readout': 'last'}])
def test_an_encoder_that_the_public_code_has_not(tmp_path, fields):
  run = save_tuned(tmp_path / 'run', **fields)
  with pytest.raises(SettingsError, match='no counterpart in the public code'):
    to_torch(run, tmp_path / 'm.safetensors')
  assert not (tmp_path / 'm.safetensors').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'classifier.2.bias': None}, 'missing weights: classifier.2.bias$'),
    ({'classifier.4.bias': np.ones(2)}, 'unknown weights: classifier.4.bias$'),
    ({'classifier.2.bias': np.ones(4)}, r'2.bias is \(4,\), not \(5,\)$'),
    ({'classifier.0.weight': np.ones((16, 9))}, r'not \(16, 32\)$'),
    ({'classifier.2.weight': np.ones(5)}, r'2.weight is \(5,\), not a matrix'),
    ({'base_model.mlm_head.bias': np.ones(9)}, r'is \(9,\), not \(30,\)$'),
    ({'base_model.mask_token': None}, 'missing weights: mask_token$'),
    (
      {'base_model.mlm_head.decoder_weight': np.zeros((30, 16))},
      'to which it must be tied$',
    ),
  ],
)
def test_weights_of_another_model_are_named(tmp_path, changes, message):
  path, _, _ = write_golden(tmp_path, 'finetuned', **changes)
  with pytest.raises(SettingsError, match=f'^--input={path}: .*{message}'):
    to_run(path, tmp_path / 'run', **TUNED)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('lines', 'message'),
  [
    ('a\n' * 28, 'has 28 lines, but the model 29 items'),
    ('a\n' + 'b\n' * 28, "line 3: 'b' is also in line 2"),
    ('\ud800', 'cannot be read'),
  ],
)
def test_a_vocabulary_that_does_not_fit(tmp_path, lines, message):
  path, _, _ = write_golden(tmp_path, 'finetuned')
  items = tmp_path / 'items.txt'
  items.write_bytes(lines.encode(errors='surrogatepass'))
  with pytest.raises(SettingsError, match=f'^--vocabulary={items}.*{message}'):
    to_run(path, tmp_path / 'run', vocabulary=str(items), **TUNED)


def test_other_bad_input_is_one_clear_error(tmp_path):
  path, _, _ = write_golden(tmp_path, 'finetuned')
  there = tmp_path / 'there'
  there.mkdir()
  broken = tmp_path / 'broken.safetensors'
  broken.write_bytes(path.read_bytes()[:-9])
  run = save_run(tmp_path / 'run', ['a', 'b\n'], seed=0)
  with pytest.raises(
    SettingsError, match=r'^--workdir=.*there exists: move it away'
  ):
    to_run(path, there)
  with pytest.raises(SettingsError, match=r'^--output=.* exists: move it away'):
    to_torch(run, path)
  with pytest.raises(SettingsError, match='num_heads must divide embed_dim'):
    to_run(path, tmp_path / 'new', num_heads=3)
  with pytest.raises(SettingsError, match=r'broken\.safetensors is damaged'):
    to_run(broken, tmp_path / 'new')
  with pytest.raises(SettingsError, match=r'gone\.safetensors cannot be read'):
    to_run(tmp_path / 'gone.safetensors', tmp_path / 'new')
  with pytest.raises(SettingsError, match=r'^--output=.*: there is no folder'):
    to_torch(run, tmp_path / 'no' / 'm.safetensors')
  with pytest.raises(SettingsError, match='contains a line break'):
    to_torch(run, tmp_path / 'm.safetensors', vocabulary=f'{tmp_path}/i.txt')
  with pytest.raises(SettingsError, match=r'give --input=model\.pt --workdir'):
    convert.ConvertSettings(input=run)
  assert not (tmp_path / 'new').exists()
  assert not (tmp_path / 'm.safetensors').exists()


def test_pytorch_is_asked_for_weights_only(tmp_path, monkeypatch):
  """What it then refuses is printed in one line."""
  asked = []

  def refuse(path, **settings):
    asked.append((path.name, settings))
    raise pickle.UnpicklingError('a long text with bad advice')

  (tmp_path / 'm.pt').touch()
  torch = types.SimpleNamespace(load=refuse)
  monkeypatch.setitem(sys.modules, 'torch', torch)
  with pytest.raises(SettingsError, match=r'm\.pt is damaged, or .*: write'):
    to_run(tmp_path / 'm.pt', tmp_path / 'new')
  assert asked == [('m.pt', {'map_location': 'cpu', 'weights_only': True})]
  # None in `sys.modules` is a package that is not there.
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(SettingsError, match=r'm\.pt needs torch: .*\[torch\]'):
    to_run(tmp_path / 'm.pt', tmp_path / 'new')
